package credential_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport/credential"
)

// The keys of the tests: made once, because RSA takes its time.
var (
	secret  = []byte("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
	rsaKey  = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	rsaKey2 = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	weakRSA = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 1024)) })
	p256    = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	p384    = must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	p521    = must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	edKey   = ed25519.NewKeyFromSeed([]byte("the seed of the tests' first key"))
	edKey2  = ed25519.NewKeyFromSeed([]byte("the seed of the tests' other key"))
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// publicPEM is public keys in PEM, one after another.
func publicPEM(keys ...crypto.Signer) []byte {
	var out []byte
	for _, k := range keys {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(k.Public()))})...)
	}
	return out
}

// jwk is the public key as a member of a set, with what else it should say.
func jwk(k crypto.Signer, more map[string]any) map[string]any {
	enc := base64.RawURLEncoding.EncodeToString
	m := map[string]any{}
	switch p := k.Public().(type) {
	case *rsa.PublicKey:
		m["kty"], m["n"], m["e"] = "RSA", enc(p.N.Bytes()), "AQAB"
	case *ecdsa.PublicKey:
		b := must(p.Bytes())[1:]
		m["kty"], m["crv"], m["x"], m["y"] = "EC", p.Params().Name, enc(b[:len(b)/2]), enc(b[len(b)/2:])
	case ed25519.PublicKey:
		m["kty"], m["crv"], m["x"] = "OKP", "Ed25519", enc(p)
	}
	maps.Copy(m, more)
	return m
}

func kid(id string) map[string]any { return map[string]any{"kid": id} }

func jwks(keys ...map[string]any) string {
	return string(must(json.Marshal(map[string]any{"keys": append([]map[string]any{}, keys...)})))
}

// claims are those of a good token, changed: nil takes one away.
func claims(changes map[string]any) map[string]any {
	now := time.Now()
	c := map[string]any{
		"tenant": "acme", "read": []string{"**"}, "write": []string{"todos", "lists/*"},
		"sub": "ada", "jti": "t-1", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	for name, v := range changes {
		if c[name] = v; v == nil {
			delete(c, name)
		}
	}
	return c
}

// sign makes a token: header and payload are JSON values, or strings as they are.
func sign(alg string, key any, header, payload any) string {
	text := segment(header) + "." + segment(payload)
	m := jwt.GetSigningMethod(alg)
	return text + "." + base64.RawURLEncoding.EncodeToString(must(m.Sign(text, key)))
}

func segment(v any) string {
	s, ok := v.(string)
	if !ok {
		s = string(must(json.Marshal(v)))
	}
	return base64.RawURLEncoding.EncodeToString([]byte(s))
}

// token is a good token by alg, with claims changed.
func token(alg string, key any, changes map[string]any) string {
	return sign(alg, key, map[string]any{"alg": alg, "typ": "JWT"}, claims(changes))
}

// named is the same, naming its key.
func named(alg string, key any, id string) string {
	return sign(alg, key, map[string]any{"alg": alg, "kid": id}, claims(nil))
}

// text is a filter that sees the rows that hold a text.
type text string

func (f text) Sees(value string) bool { return strings.Contains(value, string(f)) }
func (f text) Identity() string       { return string(f) }

// compile takes any expression but "bad".
func compile(expression string, claims map[string]any) (hub.Filter, error) {
	if strings.HasPrefix(expression, "bad") {
		return nil, errors.New(expression)
	}
	if expression == "panic" {
		panic("the compiler's mistake")
	}
	return text(fmt.Sprint(expression, claims["sub"])), nil
}

func verifier(t testing.TB, o credential.Options) *credential.Verifier {
	t.Helper()
	v, err := credential.New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

// refusal is the reason of an error, "" if there is none; whatever else it is fails the test.
func refusal(t testing.TB, err error) credential.Reason {
	t.Helper()
	if err == nil {
		return ""
	}
	var r *credential.Refused
	var h *hub.Refusal
	if !errors.As(err, &r) || !errors.As(err, &h) {
		t.Fatalf("the error is not typed: %T %v", err, err)
	}
	if h.Detail != err.Error() || h.Code != hub.Unauthenticated && h.Code != hub.Forbidden && h.Code != hub.Unavailable {
		t.Fatalf("the transports would answer %q with %q: %s", err, h.Code, h.Detail)
	}
	if (h.Code == hub.Unavailable) != (r.Reason == credential.Unavailable) || h.Code == hub.Unavailable && h.Retry <= 0 {
		t.Fatalf("%s is %s, to be tried again in %s", r.Reason, h.Code, h.Retry)
	}
	return r.Reason
}

// silent fails the test if a message holds a part of a secret.
func silent(t testing.TB, message string, secrets ...string) {
	t.Helper()
	for _, s := range secrets {
		for i := 0; i+12 <= len(s); i += 4 {
			if strings.Contains(message, s[i:i+12]) {
				t.Errorf("%q gives away %q", message, s[i:i+12])
				return
			}
		}
	}
}

func sameList(a, b []string) bool { return slices.Equal(a, b) }

// certificate is a certificate that somebody made themselves, in base64.
func certificate(key crypto.Signer) string {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	return base64.StdEncoding.EncodeToString(must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)))
}
