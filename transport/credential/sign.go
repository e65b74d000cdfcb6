package credential

import (
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
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// Signer makes tokens, for development and tests: an app makes them itself. It may be
// used concurrently.
type Signer struct {
	alg     string
	private any // as golang-jwt takes it
	public  any // nil with a secret
	print   string
}

// KeyTypes are what Generate takes.
var KeyTypes = []string{"hs256", "ed25519", "es256", "rs256"}

// Generate makes a new key: hs256 (a secret), ed25519, es256 or rs256 (3072 bits).
func Generate(kind string) (*Signer, error) {
	switch kind {
	case "hs256":
		// Its bytes are text, so that it goes through files and the environment; 64 of them,
		// so that it is long enough for HS512 as well.
		raw := make([]byte, 48)
		rand.Read(raw)
		return NewSigner([]byte(base64.RawURLEncoding.EncodeToString(raw)))
	case "ed25519":
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return signerOf(private, err)
	case "es256":
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		return signerOf(private, err)
	case "rs256":
		private, err := rsa.GenerateKey(rand.Reader, 3072)
		return signerOf(private, err)
	}
	return nil, fmt.Errorf("%q is no type of key: one of %s", clip(kind), strings.Join(KeyTypes, ", "))
}

// NewSigner signs with a secret, by HS256.
func NewSigner(secret []byte) (*Signer, error) {
	keys, err := Keys{Secret: secret}.static()
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, errors.New("the secret is empty")
	}
	return &Signer{alg: "HS256", private: keys[0].material}, nil
}

// ParseSigner reads a private key in PEM: PKCS #8, or as openssl writes RSA and EC keys.
func ParseSigner(text []byte) (*Signer, error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil, errors.New(`there is no private key here: one in PEM begins with "-----BEGIN PRIVATE KEY-----"`)
		}
		switch block.Type {
		case "EC PARAMETERS": // openssl writes them in front of the key
			continue
		case "PRIVATE KEY":
			return signerOf(x509.ParsePKCS8PrivateKey(block.Bytes))
		case "RSA PRIVATE KEY":
			return signerOf(x509.ParsePKCS1PrivateKey(block.Bytes))
		case "EC PRIVATE KEY":
			return signerOf(x509.ParseECPrivateKey(block.Bytes))
		case "PUBLIC KEY", "RSA PUBLIC KEY":
			return nil, errors.New("this is a public key: tokens are made with the private one")
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("this key has a password: openssl pkey -in FILE writes it without")
		}
		return nil, fmt.Errorf("%q is not a private key", clip(block.Type))
	}
}

func signerOf(private any, err error) (*Signer, error) {
	if err != nil {
		return nil, fmt.Errorf("the private key can't be read: %w", err)
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T can't sign tokens", private)
	}
	k, err := newKey(signer.Public())
	if err != nil {
		return nil, err
	}
	return &Signer{alg: k.algs[0], private: private, public: k.material, print: k.print}, nil
}

// Sign makes a token of claims. It says nothing about whether a server takes them.
func (s *Signer) Sign(claims map[string]any) (string, error) {
	t := jwt.NewWithClaims(methods[s.alg], jwt.MapClaims(claims))
	if s.print != "" {
		t.Header["kid"] = s.print
	}
	return t.SignedString(s.private)
}

// Keys are what a Verifier takes the tokens with.
func (s *Signer) Keys() (Keys, error) {
	if s.public == nil {
		return Keys{Secret: s.private.([]byte)}, nil
	}
	public, err := s.Public()
	return Keys{Public: public}, err
}

// Private is the private key in PEM (PKCS #8), or the secret as it is.
func (s *Signer) Private() ([]byte, error) {
	if s.public == nil {
		return s.private.([]byte), nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(s.private)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Public is the public key in PEM; with a secret there is none.
func (s *Signer) Public() ([]byte, error) {
	if s.public == nil {
		return nil, errors.New("a secret has no public key")
	}
	der, err := x509.MarshalPKIXPublicKey(s.public)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// JWKS is a set that holds the public key.
func (s *Signer) JWKS() ([]byte, error) {
	if s.public == nil {
		return nil, errors.New("a secret has no public key")
	}
	members, err := publicMembers(s.public)
	if err != nil {
		return nil, err
	}
	members["kid"], members["use"], members["alg"] = s.print, "sig", s.alg
	text, err := json.MarshalIndent(map[string]any{"keys": []any{members}}, "", "  ")
	return append(text, '\n'), err
}
