package credential_test

import (
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/transport/credential"
)

// TestGeneratedKeyWorksInEachForm: whoever made keys by tidemark keys could not use them.
func TestGeneratedKeyWorksInEachForm(t *testing.T) {
	for _, kind := range credential.KeyTypes {
		s, err := credential.Generate(kind)
		if err != nil {
			t.Fatal(err)
		}
		private, err := s.Private()
		if err != nil {
			t.Fatal(err)
		}
		again := s
		if kind == "hs256" {
			again, err = credential.NewSigner(private)
		} else {
			again, err = credential.ParseSigner(private)
		}
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		tok, err := again.Sign(claims(nil))
		if err != nil {
			t.Fatal(err)
		}
		keys, err := s.Keys()
		if err != nil {
			t.Fatal(err)
		}
		want(t, verifier(t, credential.Options{Keys: keys}), tok, "")
		set, err := s.JWKS()
		if kind == "hs256" {
			if err == nil {
				t.Errorf("the set of a secret is %s", set)
			}
			continue
		}
		e := &endpoint{}
		e.serves(string(set))
		v := verifier(t, credential.Options{Keys: credential.Keys{JWKS: "https://app.example.com/"}, Transport: http.RoundTripper(e)})
		want(t, v, tok, "")
		if strings.Contains(string(set), `"d"`) {
			t.Errorf("the set of %s has a private key: %s", kind, set)
		}
	}
	if _, err := credential.Generate("dsa"); err == nil {
		t.Error("keys of any type are made")
	}
}

func TestPrivateKeysAreReadAsOpenSSLWritesThem(t *testing.T) {
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	ec := block("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(p384)))
	for name, text := range map[string][]byte{
		"RSA":        block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey())),
		"EC":         ec,
		"parameters": append(block("EC PARAMETERS", []byte{6, 5, 43, 129, 4, 0, 34}), ec...),
		"PKCS 8":     block("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(edKey))),
	} {
		if _, err := credential.ParseSigner(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for want, text := range map[string][]byte{
		"no private key": []byte("x"), "is a public key": publicPEM(p256), "has a password": block("ENCRYPTED PRIVATE KEY", nil),
		"2048": block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(weakRSA())), "can't be read": block("PRIVATE KEY", []byte{1}), "is not a private key": block("X", nil),
	} {
		if _, err := credential.ParseSigner(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, and not %q", err, want)
		}
	}
}
