package credential_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport/credential"
)

// all are the options of a server that takes every kind of key.
func all() credential.Options {
	return credential.Options{Keys: credential.Keys{Secret: secret, Public: publicPEM(rsaKey(), p256, p384, p521, edKey)}, Filter: compile}
}

func TestGoodTokenOfEachAlgorithmGrantsWhatItSays(t *testing.T) {
	v := verifier(t, all())
	for alg, key := range map[string]any{
		"HS256": secret, "HS384": secret, "HS512": secret,
		"RS256": rsaKey(), "RS384": rsaKey(), "RS512": rsaKey(), "PS256": rsaKey(), "PS384": rsaKey(), "PS512": rsaKey(),
		"ES256": p256, "ES384": p384, "ES512": p521, "EdDSA": edKey,
	} {
		c := claims(map[string]any{"admin": true, "filters": map[string]any{"todos": "mine ", "**": "all "}})
		tok := sign(alg, key, map[string]any{"alg": alg}, c)
		for range 2 { // anew, and remembered
			g, err := v.Verify(t.Context(), tok)
			if err != nil {
				t.Errorf("%s: %v", alg, err)
				continue
			}
			if g.Tenant != "acme" || !sameList(g.Read, []string{"**"}) || !sameList(g.Write, []string{"todos", "lists/*"}) || !g.Admin ||
				g.Subject != "ada" || g.ID != "t-1" || g.Expires.Unix() != c["exp"] || g.Issued.Unix() != c["iat"] || g.Check != nil {
				t.Errorf("%s grants %+v", alg, g)
			}
			if len(g.Filters) != 2 || g.Filters[0].Pattern != "**" || g.Filters[0].Identity() != "all ada" || g.Filters[1].Pattern != "todos" {
				t.Errorf("%s filters by %+v", alg, g.Filters)
			}
		}
	}
}

func TestTokenMayNameItsKeyByThumbprintAndAnotherNameIsOnlyAName(t *testing.T) {
	v := verifier(t, all())
	print, err := credential.Thumbprint(p256.Public())
	if err != nil {
		t.Fatal(err)
	}
	for what, tok := range map[string]string{
		"thumbprint": named("ES256", p256, print),
		"other":      named("ES256", p256, "key-of-2026"),
		"secret":     named("HS256", secret, "../../../dev/null"),
		"ignored": sign("EdDSA", edKey, map[string]any{"alg": "EdDSA", "typ": 7, "jku": "https://evil.example", "x5u": "https://evil.example",
			"jwk": map[string]any{"kty": "oct"}, "x5c": []string{"AAAA"}, "cty": "JWT", "b64": true}, claims(nil)),
	} {
		if _, err := v.Verify(t.Context(), tok); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestThumbprintIsThatOfTheRFC: else a kid that others compute names no key.
func TestThumbprintIsThatOfTheRFC(t *testing.T) {
	// RFC 7638 section 3.1 and RFC 8037 appendix A.3.
	const n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
	set := `{"keys":[{"kty":"RSA","n":"` + n + `","e":"AQAB"},{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`
	for _, want := range []string{"NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs", "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"} {
		got, err := credential.Thumbprints([]byte(set))
		if err != nil || !strings.Contains(strings.Join(got, " "), want) {
			t.Errorf("%s is not among %v, %v", want, got, err)
		}
	}
}

func TestBadTokenGrantsNothing(t *testing.T) {
	asked := atomic.Int32{}
	attacker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		fmt.Fprint(w, jwks(jwk(edKey2, kid("evil"))))
	}))
	defer attacker.Close()
	defer attacker.Client().CloseIdleConnections()

	o := all()
	o.Issuer, o.Audience = "https://app.example", "tidemark"
	v := verifier(t, o)
	bare := all()
	bare.Filter = nil
	unfiltered := verifier(t, bare)

	meant := map[string]any{"iss": "https://app.example", "aud": "tidemark"}
	with := func(changes map[string]any) map[string]any {
		c := claims(meant)
		for k, x := range changes {
			if c[k] = x; x == nil {
				delete(c, k)
			}
		}
		return c
	}
	// of is a token that is right but for its claims.
	of := func(name string, value any) string {
		return sign("EdDSA", edKey, map[string]any{"alg": "EdDSA"}, with(map[string]any{name: value}))
	}
	// raw is one whose claims are written by hand.
	raw := func(payload string) string { return sign("EdDSA", edKey, `{"alg":"EdDSA"}`, payload) }
	// head is one whose header is.
	head := func(header string) string { return sign("EdDSA", edKey, header, with(nil)) }
	// by is one that is signed by somebody.
	by := func(alg string, key any, header map[string]any) string {
		h := map[string]any{"alg": alg}
		for k, x := range header {
			h[k] = x
		}
		return sign(alg, key, h, with(nil))
	}
	good := by("EdDSA", edKey, nil)
	if _, err := v.Verify(t.Context(), good); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	body, _, _ := strings.Cut(good[strings.IndexByte(good, '.')+1:], ".")
	header := good[:strings.IndexByte(good, '.')]
	signature := good[strings.LastIndexByte(good, '.')+1:]
	now := time.Now()
	inner := strings.TrimSuffix(string(must(json.Marshal(with(nil)))), "}")
	print := must(credential.Thumbprint(p256.Public()))
	many := func(n int) []string {
		list := make([]string, n)
		for i := range list {
			list[i] = "a"
		}
		return list
	}
	filters := func(n int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprintf("c%d", i)] = "x"
		}
		return m
	}
	// trailing is the good signature written with other unused bits.
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	trailing := signature[:len(signature)-1] + string(alphabet[strings.IndexByte(alphabet, signature[len(signature)-1])|1])

	const (
		malformed = credential.Malformed
		algorithm = credential.Algorithm
		forged    = credential.Signature
		wrong     = credential.Claims
		expired   = credential.Expired
		early     = credential.Early
	)
	cases := []struct {
		name, token string
		want        credential.Reason
	}{
		// The form.
		{"nothing", "", malformed},
		{"a dot", ".", malformed},
		{"two dots", "..", malformed},
		{"a million dots", strings.Repeat(".", 1_000_000), credential.TooLarge},
		{"8,000 dots", strings.Repeat(".", 8000), malformed},
		{"a byte more than 8 KiB", good + strings.Repeat("A", credential.MaxToken+1-len(good)), credential.TooLarge},
		{"huge claims", of("x", strings.Repeat("x", 7000)), credential.TooLarge},
		{"no signature part", header + "." + body, malformed},
		{"an empty signature", header + "." + body + ".", forged},
		{"a cut signature", good[:len(good)-1], malformed},
		{"a signature cut by 6", good[:len(good)-6], forged},
		{"half a token", good[:len(good)/2], malformed},
		{"a dot behind", good + ".", malformed},
		{"a dot in front", "." + good, malformed},
		{"two dots behind: five parts", good + "..", malformed},
		{"JWE", strings.Join([]string{segment(`{"alg":"dir","enc":"A256GCM"}`), "", body, body, body}, "."), malformed},
		{"Bearer in front", "Bearer " + good, malformed},
		{"a space behind", good + " ", malformed},
		{"a line end behind", good + "\n", malformed},
		{"a line end inside", good[:5] + "\n" + good[5:], malformed},
		{"a line end in the signature", good[:len(good)-4] + "\r\n" + good[len(good)-4:], malformed},
		{"padding", header + "=." + body + "." + signature, malformed},
		{"padding of the signature", good + "==", malformed},
		{"the other base64", header + "." + strings.ReplaceAll(body, "_", "/") + "+." + signature, malformed},
		{"bits behind the signature", header + "." + body + "." + trailing, malformed},
		{"NUL", good + "\x00", malformed},
		{"not ASCII", good + "é", malformed},
		{"header of no JSON", segment("x") + "." + body + "." + signature, malformed},
		{"header is a list", head(`[]`), malformed},
		{"header is null", head(`null`), malformed},
		{"JSON behind the header", head(`{"alg":"EdDSA"}{}`), malformed},
		{"alg twice", head(`{"alg":"none","alg":"EdDSA"}`), malformed},
		{"alg twice, once escaped", head(`{"alg":"EdDSA","\u0061lg":"EdDSA"}`), malformed},
		{"deep header", head(`{"alg":"EdDSA","x":` + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + `}`), malformed},
		{"header of invalid UTF-8", head("{\"alg\":\"EdDSA\",\"x\":\"\xff\"}"), malformed},
		{"payload is a list", raw(`[]`), malformed},
		{"payload is null", raw(`null`), malformed},
		{"payload is empty", header + ".." + signature, malformed},
		{"payload is no JSON", raw(`{"tenant":`), malformed},
		{"JSON behind the payload", raw(inner + `} {}`), malformed},
		{"tenant twice", raw(inner + `,"tenant":"other"}`), malformed},
		{"tenant twice, once escaped", raw(inner + `,"\u0074enant":"other"}`), malformed},
		{"exp twice", raw(inner + `,"exp":9999999999}`), malformed},
		{"twice further in", raw(inner + `,"filters":{"a":"x","a":"y"}}`), malformed},
		{"deep payload", raw(inner + `,"x":` + strings.Repeat(`[`, 1500) + strings.Repeat(`]`, 1500) + `}`), malformed},
		{"17 levels", raw(inner + `,"x":` + strings.Repeat(`[`, 16) + strings.Repeat(`]`, 16) + `}`), malformed},
		{"deep and not closed", raw(strings.Repeat(`{"a":`, 1000)), malformed},
		{"very many elements", raw(inner + `,"x":[0` + strings.Repeat(`,0`, 4100/2) + strings.Repeat(`,[`, 10) + `}`), malformed},
		{"half a surrogate", raw(inner + `,"x":"\ud800"}`), malformed},
		{"payload of invalid UTF-8", raw(inner + ",\"x\":\"\xff\"}"), malformed},
		{"a number past all", raw(inner + `,"x":1e999}`), malformed},

		// The algorithm.
		{"none", segment(`{"alg":"none"}`) + "." + body + ".", algorithm},
		{"none with a signature", segment(`{"alg":"none"}`) + "." + body + "." + signature, algorithm},
		{"None", segment(`{"alg":"None"}`) + "." + body + ".", algorithm},
		{"NONE", segment(`{"alg":"NONE"}`) + "." + body + ".", algorithm},
		{"none and a space", segment(`{"alg":"none "}`) + "." + body + ".", algorithm},
		{"none, and the header has spaces", segment(" { \"alg\" :\t\"none\" } ") + "." + body + ".", algorithm},
		{"empty alg", head(`{"alg":""}`), algorithm},
		{"no alg", head(`{"typ":"JWT"}`), malformed},
		{"alg null", head(`{"alg":null}`), malformed},
		{"alg list", head(`{"alg":["EdDSA"]}`), malformed},
		{"Alg", head(`{"Alg":"EdDSA"}`), malformed},
		{"lower case", head(`{"alg":"eddsa"}`), algorithm},
		{"hs256", sign("HS256", secret, `{"alg":"hs256"}`, with(nil)), algorithm},
		{"ES256K", head(`{"alg":"ES256K"}`), algorithm},
		{"RSA-OAEP", head(`{"alg":"RSA-OAEP"}`), algorithm},
		{"HS256 by the public PEM", by("HS256", publicPEM(rsaKey()), nil), forged},
		{"HS256 by all public PEM", by("HS256", publicPEM(rsaKey(), p256, p384, p521, edKey), nil), forged},
		{"HS256 by the public DER", by("HS256", must(x509.MarshalPKIXPublicKey(rsaKey().Public())), nil), forged},
		{"HS256 by the modulus", by("HS256", rsaKey().N.Bytes(), nil), forged},
		{"HS256 by the Ed25519 key", by("HS256", []byte(edKey.Public().(ed25519.PublicKey)), nil), forged},
		{"HS256 by nothing", by("HS256", []byte{}, nil), forged},
		{"alg says HS256, signed by RSA", sign("RS256", rsaKey(), `{"alg":"HS256"}`, with(nil)), forged},
		{"alg says RS256, signed by PS256", sign("PS256", rsaKey(), `{"alg":"RS256"}`, with(nil)), forged},
		{"alg says RS512, signed by RS256", sign("RS256", rsaKey(), `{"alg":"RS512"}`, with(nil)), forged},
		{"alg says ES384, signed by P-256", sign("ES256", p256, `{"alg":"ES384"}`, with(nil)), forged},
		{"ES256 of zeros", segment(`{"alg":"ES256"}`) + "." + body + "." + segment(string(make([]byte, 64))), forged}, // CVE-2022-21449
		{"ES256 in DER", segment(`{"alg":"ES256"}`) + "." + body + "." + segment(string(must(ecdsa.SignASN1(rand.Reader, p256, make([]byte, 32))))), forged},

		// The key.
		{"another's RSA key", by("RS256", rsaKey2(), nil), forged},
		{"another's Ed25519 key", by("EdDSA", edKey2, nil), forged},
		{"another's P-256 key", by("ES256", must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), nil), forged},
		{"another's secret", by("HS256", bytes.Repeat([]byte("x"), 32), nil), forged},
		{"the secret and a line end", by("HS256", append(bytes.Clone(secret), '\n'), nil), forged},
		{"kid names another key", by("EdDSA", edKey, map[string]any{"kid": print}), algorithm},
		{"kid names another key, alg fits it", sign("EdDSA", edKey, `{"alg":"ES256","kid":"`+print+`"}`, with(nil)), forged},
		{"kid is a number", by("EdDSA", edKey, map[string]any{"kid": 1}), malformed},
		{"kid is null", by("EdDSA", edKey, map[string]any{"kid": nil}), malformed},
		{"kid is long", by("EdDSA", edKey, map[string]any{"kid": strings.Repeat("k", 201)}), malformed},
		{"kid with NUL", by("EdDSA", edKey, map[string]any{"kid": "a\x00b"}), malformed},
		{"kid with a line end", by("EdDSA", edKey, map[string]any{"kid": "a\r\nb"}), malformed},
		{"kid of an empty file", by("HS256", []byte{}, map[string]any{"kid": "../../../../dev/null"}), forged},
		{"kid of SQL", by("HS256", []byte("x"), map[string]any{"kid": "x' UNION SELECT 'x"}), forged},
		{"embedded jwk", by("EdDSA", edKey2, map[string]any{"jwk": jwk(edKey2, nil)}), forged},
		{"jku of an attacker", by("EdDSA", edKey2, map[string]any{"jku": attacker.URL, "kid": "evil"}), forged},
		{"x5u of an attacker", by("EdDSA", edKey2, map[string]any{"x5u": attacker.URL, "kid": "evil"}), forged},
		{"x5c of an attacker", by("RS256", rsaKey2(), map[string]any{"x5c": []string{certificate(rsaKey2())}}), forged},
		{"kid is a URL", by("EdDSA", edKey2, map[string]any{"kid": attacker.URL}), forged},
		{"iss is a URL with keys", sign("EdDSA", edKey2, `{"alg":"EdDSA"}`, with(map[string]any{"iss": attacker.URL})), forged},
		{"crit unknown", by("EdDSA", edKey, map[string]any{"crit": []string{"x"}, "x": 1}), malformed},
		{"crit exp", by("EdDSA", edKey, map[string]any{"crit": []string{"exp"}, "exp": 1}), malformed},
		{"crit empty", by("EdDSA", edKey, map[string]any{"crit": []string{}}), malformed},
		{"crit null", by("EdDSA", edKey, map[string]any{"crit": nil}), malformed},
		{"b64 false", by("EdDSA", edKey, map[string]any{"b64": false}), malformed},
		{"b64 false and crit", by("EdDSA", edKey, map[string]any{"b64": false, "crit": []string{"b64"}}), malformed},
		{"other claims under the signature", header + "." + segment(with(map[string]any{"tenant": "*"})) + "." + signature, forged},
		{"other header over the signature", segment(`{"alg":"EdDSA" }`) + "." + body + "." + signature, forged},

		// The time.
		{"expired by a second", of("exp", now.Unix()-1), expired},
		{"expires now", of("exp", now.Unix()), expired},
		{"expired long ago", of("exp", 1), expired},
		{"exp 0", of("exp", 0), expired},
		{"no exp", of("exp", nil), wrong},
		{"exp null", raw(strings.Replace(inner, `"exp":`, `"exp":null,"y":`, 1) + `}`), wrong},
		{"exp string", of("exp", fmt.Sprint(now.Unix()+3600)), wrong},
		{"exp 1e300", raw(strings.Replace(inner, `"exp":`, `"exp":1e300,"y":`, 1) + `}`), wrong},
		{"exp past all", raw(strings.Replace(inner, `"exp":`, `"exp":1e400,"y":`, 1) + `}`), malformed},
		{"exp in milliseconds", of("exp", now.UnixMilli()*1000), wrong},
		{"exp negative", of("exp", -1), wrong},
		{"exp NaN", raw(strings.Replace(inner, `"exp":`, `"exp":NaN,"y":`, 1) + `}`), malformed},
		{"exp \"NaN\"", of("exp", "NaN"), wrong},
		{"exp Infinity", raw(strings.Replace(inner, `"exp":`, `"exp":Infinity,"y":`, 1) + `}`), malformed},
		{"exp true", of("exp", true), wrong},
		{"exp list", of("exp", []int64{now.Unix() + 3600}), wrong},
		{"exp hexadecimal", raw(strings.Replace(inner, `"exp":`, `"exp":0x7fffffff,"y":`, 1) + `}`), malformed},
		{"Exp", raw(strings.Replace(inner, `"exp":`, `"Exp":`, 1) + `}`), wrong},
		{"nbf in the future", of("nbf", now.Unix()+60), early},
		{"nbf string", of("nbf", "0"), wrong},
		{"nbf 1e300", of("nbf", 1e300), wrong},
		{"iat in the future", of("iat", now.Unix()+60), early},
		{"iat string", of("iat", "0"), wrong},
		{"iat null", raw(strings.Replace(inner, `"iat":`, `"iat":null,"y":`, 1) + `}`), wrong},

		// Who made it, and for whom.
		{"another iss", of("iss", "https://other.example"), credential.Issuer},
		{"no iss", of("iss", nil), credential.Issuer},
		{"iss with a slash more", of("iss", "https://app.example/"), credential.Issuer},
		{"iss in capitals", of("iss", "https://APP.example"), credential.Issuer},
		{"iss list", of("iss", []string{"https://app.example"}), credential.Issuer},
		{"another aud", of("aud", "other"), credential.Audience},
		{"no aud", of("aud", nil), credential.Audience},
		{"aud list without", of("aud", []string{"other", "tidemark2"}), credential.Audience},
		{"aud empty list", of("aud", []string{}), credential.Audience},
		{"aud list with another kind", of("aud", []any{"tidemark", 1}), credential.Audience},
		{"aud in a list in a list", of("aud", []any{[]any{"tidemark"}}), credential.Audience},
		{"aud object", of("aud", map[string]any{"tidemark": true}), credential.Audience},
		{"aud with a space", of("aud", "tidemark "), credential.Audience},
		{"aud that begins so", of("aud", "tidemark.evil"), credential.Audience},

		// What it grants.
		{"no tenant", of("tenant", nil), wrong},
		{"tenant empty", of("tenant", ""), wrong},
		{"tenant null", raw(strings.Replace(inner, `"tenant":`, `"tenant":null,"y":`, 1) + `}`), wrong},
		{"tenant **", of("tenant", "**"), wrong},
		{"tenant list", of("tenant", []string{"acme"}), wrong},
		{"tenant number", of("tenant", 1), wrong},
		{"tenant path", of("tenant", "acme/../other"), wrong},
		{"tenant $", of("tenant", "$all"), wrong},
		{"tenant of 65", of("tenant", strings.Repeat("a", 65)), wrong},
		{"tenant with NUL", of("tenant", "acme\x00"), wrong},
		{"Tenant", raw(strings.Replace(inner, `"tenant":`, `"Tenant":`, 1) + `}`), wrong},
		{"read string", of("read", "**"), wrong},
		{"read null", raw(strings.Replace(inner, `"read":`, `"read":null,"y":`, 1) + `}`), wrong},
		{"read of numbers", of("read", []int{1}), wrong},
		{"read empty pattern", of("read", []string{""}), wrong},
		{"read slash", of("read", []string{"/"}), wrong},
		{"read slash in front", of("read", []string{"/todos"}), wrong},
		{"read slash behind", of("read", []string{"todos/"}), wrong},
		{"read two slashes", of("read", []string{"a//b"}), wrong},
		{"read ** not last", of("read", []string{"**/a"}), wrong},
		{"read ***", of("read", []string{"***"}), wrong},
		{"read a*", of("read", []string{"a*"}), wrong},
		{"read a**", of("read", []string{"a/b**"}), wrong},
		{"read $", of("read", []string{"$revoked"}), wrong},
		{"read dots", of("read", []string{"../a"}), wrong},
		{"read nine segments", of("read", []string{"a/b/c/d/e/f/g/h/i"}), wrong},
		{"read nine with **", of("read", []string{"a/b/c/d/e/f/g/h/**"}), wrong},
		{"read long segment", of("read", []string{strings.Repeat("a", 65)}), wrong},
		{"write object", of("write", map[string]any{"todos": true}), wrong},
		{"257 patterns", of("read", many(257)), wrong},
		{"257 patterns in both", sign("EdDSA", edKey, `{"alg":"EdDSA"}`, with(map[string]any{"read": many(128), "write": many(129)})), wrong},
		{"sub number", of("sub", 7), wrong},
		{"sub of 201", of("sub", strings.Repeat("a", 201)), wrong},
		{"sub with a line end", of("sub", "a\nb"), wrong},
		{"sub with C1", of("sub", "a\u0085b"), wrong},
		{"jti list", of("jti", []string{}), wrong},
		{"jti of 201", of("jti", strings.Repeat("é", 101)), wrong},
		{"admin string", of("admin", "true"), wrong},
		{"admin 1", of("admin", 1), wrong},
		{"filters list", of("filters", []string{"x"}), wrong},
		{"filters null", raw(inner + `,"filters":null}`), wrong},
		{"filter number", of("filters", map[string]any{"todos": 1}), wrong},
		{"filter empty", of("filters", map[string]any{"todos": ""}), wrong},
		{"filter of a bad pattern", of("filters", map[string]any{"a//b": "x"}), wrong},
		{"filter too long", of("filters", map[string]any{"todos": strings.Repeat("x", 2049)}), wrong},
		{"33 filters", of("filters", filters(33)), wrong},
		{"filter that makes the compiler panic", of("filters", map[string]any{"todos": "panic"}), credential.FilterFault},
		{"filter that does not compile", of("filters", map[string]any{"todos": "bad\n" + strings.Repeat("x", 500)}), credential.FilterFault},
	}
	if len(cases) < 60 {
		t.Errorf("there are only %d cases", len(cases))
	}
	seen := map[string]bool{}
	for _, c := range cases {
		if seen[c.name] {
			t.Errorf("%s is there twice", c.name)
		}
		seen[c.name] = true
		t.Run(c.name, func(t *testing.T) {
			for range 2 { // what is refused is not remembered as good
				g, err := v.Verify(t.Context(), c.token)
				if got := refusal(t, err); got != c.want {
					t.Fatalf("the answer is %q, %v; not %q", got, err, c.want)
				}
				if g.Tenant != "" || g.Read != nil || g.Write != nil || g.Admin {
					t.Errorf("with the error comes %+v", g)
				}
				if m := err.Error(); strings.ContainsAny(m, "\n\r\x00") || len(m) > 400 {
					t.Errorf("the message is unfit to show: %q", m)
				}
				silent(t, err.Error(), c.token, string(secret), string(publicPEM(rsaKey())))
			}
		})
	}
	if _, err := unfiltered.Verify(t.Context(), token("EdDSA", edKey, map[string]any{"filters": map[string]any{"todos": "x"}})); refusal(t, err) != credential.FilterFault {
		t.Errorf("a server without filters answers %v to a token with one", err)
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the attacker's server was asked %d times", n)
	}
}

func TestFormsThatAreAllowedAreTaken(t *testing.T) {
	v := verifier(t, all())
	now := time.Now()
	for name, changes := range map[string]map[string]any{
		"exp with a fraction":      {"exp": float64(now.Unix()) + 60.5},
		"nbf within the leeway":    {"nbf": now.Unix() + 3},
		"iat within the leeway":    {"iat": now.Unix() + 3},
		"aud that nobody asks for": {"aud": []any{"other"}, "iss": "anybody"},
		"all tenants":              {"tenant": "*"},
		"nothing to read":          {"read": nil, "write": []string{}},
		"eight segments":           {"read": []string{"a/b/c/d/e/f/g/**", "*/*"}},
		"256 patterns":             {"read": strings.Split(strings.Repeat("a,", 255)+"a", ","), "write": nil},
		"no sub":                   {"sub": nil, "jti": nil, "iat": nil},
		"other claims":             {"groups": []any{"a", map[string]any{"b": nil}}, "email": "ada@example.com"},
		"no filters":               {"filters": map[string]any{}},
	} {
		if _, err := v.Verify(t.Context(), token("ES256", p256, changes)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	o := all()
	o.Audience, o.Issuer = "tidemark", "app"
	for _, aud := range []any{"tidemark", []any{"other", "tidemark"}} {
		if _, err := verifier(t, o).Verify(t.Context(), token("HS256", secret, map[string]any{"aud": aud, "iss": "app"})); err != nil {
			t.Errorf("aud %v: %v", aud, err)
		}
	}
}

// TestFilterSeesTheNumberThatTheAppWrote: else somebody whose large id is the same as another's
// once both are floats would see the other's rows.
func TestFilterSeesTheNumberThatTheAppWrote(t *testing.T) {
	o := all()
	var got map[string]any
	o.Filter = func(_ string, claims map[string]any) (hub.Filter, error) {
		got = claims
		return text("x"), nil
	}
	_, err := verifier(t, o).Verify(t.Context(), token("HS256", secret, map[string]any{"org": 9007199254740993, "filters": map[string]any{"todos": "x"}}))
	if err != nil || got["org"] != json.Number("9007199254740993") || got["tenant"] != "acme" {
		t.Errorf("the filter got %v, %v", got, err)
	}
}

func TestServerDoesNotStartWithKeysThatDoNotProtect(t *testing.T) {
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(p256))})
	p224 := must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	ssh := "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1vQn1u1mJ0b0oT0vJm2uD2w4lqT0QeYq7dJm5o1xyz me@host"
	good := publicPEM(p256)
	for name, c := range map[string]struct {
		keys credential.Keys
		want string
	}{
		"no keys":                 {credential.Keys{}, "no keys"},
		"short secret":            {credential.Keys{Secret: secret[:31]}, "31 bytes"},
		"secret is public PEM":    {credential.Keys{Secret: publicPEM(rsaKey())}, "a key in PEM"},
		"with a byte order mark":  {credential.Keys{Secret: append([]byte("\uFEFF  "), publicPEM(p256)...)}, "a key in PEM"},
		"secret is private PEM":   {credential.Keys{Secret: private}, "a key in PEM"},
		"secret is a JWK":         {credential.Keys{Secret: must(json.Marshal(jwk(rsaKey(), nil)))}, "JSON Web Key"},
		"secret is a JWKS":        {credential.Keys{Secret: []byte(jwks(jwk(p256, nil)))}, "JSON Web Key"},
		"secret is an SSH key":    {credential.Keys{Secret: []byte(ssh)}, "an SSH key"},
		"secret is an SSH EC key": {credential.Keys{Secret: []byte("ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTY")}, "an SSH key"},
		"secret is DER":           {credential.Keys{Secret: must(x509.MarshalPKIXPublicKey(rsaKey().Public()))}, "a public key"},
		"secret is DER in base64": {credential.Keys{Secret: []byte(base64.StdEncoding.EncodeToString(must(x509.MarshalPKIXPublicKey(p256.Public()))))}, "a public key"},
		"public is private":       {credential.Keys{Public: private}, "private key"},
		"one of two is private":   {credential.Keys{Public: append(publicPEM(edKey), private...)}, "public key 2: this is a private key"},
		"public is RSA private":   {credential.Keys{Public: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey())})}, "openssl pkey"},
		"public is a certificate": {credential.Keys{Public: []byte("-----BEGIN CERTIFICATE-----\n" + certificate(rsaKey()) + "\n-----END CERTIFICATE-----\n")}, "certificate"},
		"public is an SSH key":    {credential.Keys{Public: []byte(ssh)}, "SSH"},
		"public is a JWK":         {credential.Keys{Public: []byte(jwks(jwk(p256, nil)))}, "JWKS"},
		"public is a secret":      {credential.Keys{Public: secret}, "BEGIN PUBLIC KEY"},
		"weak RSA":                {credential.Keys{Public: publicPEM(weakRSA())}, "2048"},
		"P-224":                   {credential.Keys{Public: publicPEM(p224)}, "P-256"},
		"one of two damaged":      {credential.Keys{Public: append(publicPEM(edKey), bytes.Replace(good, []byte("-----END"), []byte("----END"), 1)...)}, "only 1 can be read"},
		"damaged inside":          {credential.Keys{Public: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte{1, 2, 3}})}, "can't be read"},
		"65 keys":                 {credential.Keys{Public: bytes.Repeat(good, 65)}, "more than 64"},
		"http":                    {credential.Keys{JWKS: "http://app.example.com/jwks.json"}, "https"},
		"http that looks local":   {credential.Keys{JWKS: "http://localhost.example.com/"}, "https"},
		"ftp":                     {credential.Keys{JWKS: "ftp://app.example.com/"}, "looks like https://"},
		"file":                    {credential.Keys{JWKS: "file:///etc/passwd"}, "looks like https://"},
		"password in the URL":     {credential.Keys{JWKS: "https://user:hunter2hunter2@app.example.com/"}, "password"},
	} {
		v, err := credential.New(t.Context(), credential.Options{Keys: c.keys})
		if err == nil {
			v.Close()
			t.Errorf("%s: it starts", name)
			continue
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		silent(t, err.Error(), string(c.keys.Secret), "hunter2hunter2")
	}
	for _, o := range []credential.Options{{Leeway: 31 * time.Second}, {Leeway: -1}, {Refresh: time.Second}, {Timeout: time.Minute}} {
		o.Secret = secret
		if _, err := credential.New(t.Context(), o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

func TestShorterSecretIsForFewerAlgorithms(t *testing.T) {
	for n, algs := range map[int]string{32: "HS256", 47: "HS256", 48: "HS256 HS384", 63: "HS256 HS384", 64: "HS256 HS384 HS512"} {
		v := verifier(t, credential.Options{Keys: credential.Keys{Secret: secret[:n]}})
		for _, alg := range []string{"HS256", "HS384", "HS512"} {
			_, err := v.Verify(t.Context(), token(alg, secret[:n], nil))
			if (err == nil) != strings.Contains(algs, alg) {
				t.Errorf("%s with %d bytes: %v", alg, n, err)
			}
		}
	}
}

// TestRememberedTokenEndsAtItsTime: a remembered token is one that nobody looks at again.
func TestRememberedTokenEndsAtItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		compiled := 0
		o := credential.Options{Keys: credential.Keys{Secret: secret}, Filter: func(string, map[string]any) (hub.Filter, error) {
			compiled++
			return text("x"), nil
		}}
		v := verifier(t, o)
		tok := token("HS256", secret, map[string]any{"exp": time.Now().Add(90 * time.Second).Unix(), "filters": map[string]any{"a": "x"}})
		try := func(want credential.Reason, times int) {
			t.Helper()
			if _, err := v.Verify(t.Context(), tok); refusal(t, err) != want || compiled != times {
				t.Errorf("%v, and filters were compiled %d times", err, compiled)
			}
		}
		try("", 1)
		time.Sleep(59 * time.Second)
		try("", 1)
		time.Sleep(time.Second)
		try("", 2)
		time.Sleep(30*time.Second - 1)
		try("", 2)
		time.Sleep(time.Nanosecond)
		try(credential.Expired, 2)
	})
}

// TestAlteredTokenIsNeverAnother changes tokens at random. What verifies all the same grants
// what the original did: an ECDSA signature can be written in two ways.
func TestAlteredTokenIsNeverAnother(t *testing.T) {
	v := verifier(t, all())
	var originals []string
	for alg, key := range map[string]any{"HS256": secret, "RS256": rsaKey(), "ES256": p256, "EdDSA": edKey} {
		originals = append(originals, token(alg, key, nil))
	}
	rapid.Check(t, func(t *rapid.T) {
		was := []byte(rapid.SampledFrom(originals).Draw(t, "token"))
		is := bytes.Clone(was)
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			i := rapid.IntRange(0, len(is)-1).Draw(t, "at")
			switch rapid.IntRange(0, 2).Draw(t, "how") {
			case 0:
				is[i] = rapid.Byte().Draw(t, "byte")
			case 1:
				is = append(is[:i], is[i+1:]...)
			case 2:
				is = append(is[:i], append([]byte{rapid.Byte().Draw(t, "byte")}, is[i:]...)...)
			}
		}
		if bytes.Equal(was, is) {
			return
		}
		g, err := v.Verify(context.Background(), string(is))
		if err != nil {
			return
		}
		// Only the signature may differ, and only ECDSA's.
		if !bytes.Equal(is[:bytes.LastIndexByte(is, '.')], was[:bytes.LastIndexByte(was, '.')]) || g.Tenant != "acme" {
			t.Fatalf("%s verifies as %+v", is, g)
		}
	})
}

// TestEveryByteOfATokenCounts changes each byte of a token to each other of the alphabet.
func TestEveryByteOfATokenCounts(t *testing.T) {
	v := verifier(t, credential.Options{Keys: credential.Keys{Secret: secret}})
	was := token("HS256", secret, nil)
	for i := range was {
		for _, b := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ \n\x00") {
			if b == was[i] {
				continue
			}
			if _, err := v.Verify(t.Context(), was[:i]+string(rune(b))+was[i+1:]); err == nil {
				t.Fatalf("byte %d may be %q", i, b)
			}
		}
	}
}

func FuzzVerify(f *testing.F) {
	v := verifier(f, all())
	issued := map[string]bool{}
	for alg, key := range map[string]any{"HS256": secret, "RS256": rsaKey(), "PS256": rsaKey(), "ES256": p256, "EdDSA": edKey} {
		tok := token(alg, key, map[string]any{"exp": 4102444800, "filters": map[string]any{"todos": "x"}})
		issued[tok[:strings.LastIndexByte(tok, '.')]] = true
		f.Add(tok)
	}
	f.Add(segment(`{"alg":"none"}`) + "." + segment(`{"tenant":"*","exp":4102444800}`) + ".")
	f.Fuzz(func(t *testing.T, tok string) {
		_, err := v.Verify(t.Context(), tok)
		if refusal(t, err) == "" && !issued[tok[:strings.LastIndexByte(tok, '.')]] {
			t.Fatalf("nobody issued %q", tok)
		}
	})
}

// FuzzClaims signs whatever it is given: the app may have let its users write claims.
func FuzzClaims(f *testing.F) {
	v := verifier(f, all())
	f.Add(`{"alg":"HS256"}`, string(must(json.Marshal(claims(map[string]any{"exp": 4102444800, "filters": map[string]any{"a/*": "x"}})))))
	f.Add(`{"alg":"HS256","kid":"x"}`, `{"tenant":"*","exp":4e9,"admin":true,"read":["**","a/**"]}`)
	f.Add(`{"alg":"HS256","alg":"none"}`, `{"tenant":"a","exp":1e300}`)
	f.Fuzz(func(t *testing.T, header, payload string) {
		g, err := v.Verify(t.Context(), sign("HS256", secret, header, payload))
		if refusal(t, err) != "" {
			return
		}
		if g.Tenant == "" || strings.ContainsAny(g.Tenant, "/$.") || !g.Expires.After(time.Now()) || len(g.Read)+len(g.Write) > 256 || len(g.Filters) > 32 {
			t.Fatalf("%s grants %+v", payload, g)
		}
		if g.MayRead("other", "$revoked") && g.Tenant != "*" {
			t.Fatalf("%s reads what it must not: %+v", payload, g)
		}
		for _, p := range append(append([]string{}, g.Read...), g.Write...) {
			if p == "" || strings.Contains(p, "//") || strings.Count(p, "/") > 7 {
				t.Fatalf("%s holds the pattern %q", payload, p)
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	for _, alg := range []struct {
		name string
		key  any
	}{{"HS256", secret}, {"RS256", rsaKey()}, {"ES256", p256}, {"EdDSA", edKey}} {
		b.Run(alg.name+"/anew", func(b *testing.B) {
			v := verifier(b, all())
			tokens := make([]string, 512)
			for i := range tokens {
				tokens[i] = token(alg.name, alg.key, map[string]any{"n": i})
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i%len(tokens) == 0 {
					b.StopTimer()
					v.Close()
					v, _ = credential.New(b.Context(), all())
					b.StartTimer()
				}
				if _, err := v.Verify(b.Context(), tokens[i%len(tokens)]); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(alg.name+"/remembered", func(b *testing.B) {
			v := verifier(b, all())
			tok := token(alg.name, alg.key, nil)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(b.Context(), tok); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
