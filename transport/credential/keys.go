package credential

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"slices"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// Keys are what tokens are verified with. At least one of Secret, Public and JWKS must
// be given; with several, a token may be signed for any, which helps to move from one to
// another: no token can make a key of one kind pass for another's.
type Keys struct {
	// Secret is shared with who makes tokens: HS256, with 48 bytes or more HS384 too,
	// with 64 or more HS512 (RFC 7518 section 3.2). At least 32 bytes.
	Secret []byte
	// Public holds public keys, PEM blocks one after another, at most 64: RSA of 2048 to
	// 8192 bits (RS256 to RS512, PS256 to PS512), ECDSA (P-256: ES256, P-384: ES384, P-521: ES512) and
	// Ed25519 (EdDSA). A token need not name its key; if its kid is a key's RFC 7638
	// thumbprint, it must be signed with that one.
	Public []byte
	// JWKS is the URL of a JSON Web Key Set (RFC 7517): https, or http on loopback.
	JWKS string
	// InsecureHTTP lets JWKS be http on other hosts too: whoever can change what goes over that
	// network can then make tokens.
	InsecureHTTP bool
}

// Bounds of keys.
const (
	minSecret = 32   // bytes
	minRSA    = 2048 // bits: RFC 7518 section 3.3
	maxRSA    = 8192 // bits: CVE-2023-29409, a longer one costs too much to verify with
	maxKeys   = 64   // of a file or of a set
	maxPEM    = 256 << 10
)

// methods are the algorithms that there are: "none" is not (RFC 8725 section 3.2).
var methods = map[string]jwt.SigningMethod{
	"HS256": jwt.SigningMethodHS256, "HS384": jwt.SigningMethodHS384, "HS512": jwt.SigningMethodHS512,
	"RS256": jwt.SigningMethodRS256, "RS384": jwt.SigningMethodRS384, "RS512": jwt.SigningMethodRS512,
	"PS256": jwt.SigningMethodPS256, "PS384": jwt.SigningMethodPS384, "PS512": jwt.SigningMethodPS512,
	"ES256": jwt.SigningMethodES256, "ES384": jwt.SigningMethodES384, "ES512": jwt.SigningMethodES512,
	"EdDSA": jwt.SigningMethodEdDSA,
}

// key is one verification key. It is not changed.
type key struct {
	id       string   // its kid in a JWKS, "" where it has none
	print    string   // RFC 7638 thumbprint, "" for a secret
	algs     []string // what it may verify: RFC 8725 section 3.1
	material any      // as golang-jwt takes it
}

// newKey binds a key to its algorithms, or says why it is not taken.
func newKey(material any) (*key, error) {
	algs, err := algorithms(material)
	if err != nil {
		return nil, err
	}
	k := &key{algs: algs, material: material}
	if _, secret := material.([]byte); !secret {
		if k.print, err = Thumbprint(material); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// algorithms is the one table from keys to algorithms.
func algorithms(material any) ([]string, error) {
	switch k := material.(type) {
	case []byte:
		switch n := len(k); {
		case n < minSecret:
			return nil, fmt.Errorf("the secret has %d bytes, and needs at least %d: tidemark keys --type hs256 makes one", n, minSecret)
		case n < 48:
			return []string{"HS256"}, nil
		case n < 64:
			return []string{"HS256", "HS384"}, nil
		}
		return []string{"HS256", "HS384", "HS512"}, nil
	case *rsa.PublicKey:
		if k.N == nil || k.N.BitLen() < minRSA || k.N.BitLen() > maxRSA {
			return nil, fmt.Errorf("an RSA key must have %d to %d bits", minRSA, maxRSA)
		}
		if k.E < 3 || k.E&1 == 0 || k.E > 1<<31-1 || k.N.Bit(0) == 0 {
			return nil, errors.New("an RSA key with such numbers is none")
		}
		return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}, nil
	case *ecdsa.PublicKey:
		if _, err := k.Bytes(); err != nil {
			return nil, errors.New("an ECDSA key must be a point of its curve")
		}
		switch k.Curve {
		case elliptic.P256():
			return []string{"ES256"}, nil
		case elliptic.P384():
			return []string{"ES384"}, nil
		case elliptic.P521():
			return []string{"ES512"}, nil
		}
		return nil, errors.New("an ECDSA key must be of P-256, P-384 or P-521")
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("an Ed25519 key must have %d bytes", ed25519.PublicKeySize)
		}
		return []string{"EdDSA"}, nil
	}
	return nil, fmt.Errorf("a key of type %T can't verify tokens: RSA, ECDSA and Ed25519 can", material)
}

// Thumbprint is what names a public key by its content: the SHA-256 of RFC 7638, in base64url.
func Thumbprint(public crypto.PublicKey) (string, error) {
	members, err := publicMembers(public)
	if err != nil {
		return "", err
	}
	// The members that make the key, in the order of their names, without spaces: section 3.
	names := make([]string, 0, len(members))
	for name := range members {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		names[i] = `"` + name + `":"` + members[name] + `"`
	}
	sum := sha256.Sum256([]byte("{" + strings.Join(names, ",") + "}"))
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

// publicMembers are the members of a JWK that make a public key.
func publicMembers(public crypto.PublicKey) (map[string]string, error) {
	encode := base64.RawURLEncoding.EncodeToString
	switch k := public.(type) {
	case *rsa.PublicKey:
		return map[string]string{"kty": "RSA", "n": encode(k.N.Bytes()), "e": encode(big.NewInt(int64(k.E)).Bytes())}, nil
	case *ecdsa.PublicKey:
		point, err := k.Bytes() // 4, x, y
		if err != nil {
			return nil, err
		}
		half := (len(point) - 1) / 2
		return map[string]string{"kty": "EC", "crv": k.Params().Name, "x": encode(point[1 : 1+half]), "y": encode(point[1+half:])}, nil
	case ed25519.PublicKey:
		return map[string]string{"kty": "OKP", "crv": "Ed25519", "x": encode(k)}, nil
	}
	return nil, fmt.Errorf("a key of type %T has no JWK here", public)
}

// keySet is all that tokens may be verified with at one time. It is not changed.
type keySet struct {
	keys []*key
	// partial: a JWKS belongs to it that was never read.
	partial bool
}

// find gives the keys that a token may be signed with. named tells whether its kid
// names some: then it must be one of these.
func (s *keySet) find(alg, kid string) (fit []*key, named bool) {
	var anonymous []*key
	for _, k := range s.keys {
		fits := slices.Contains(k.algs, alg)
		switch {
		case kid != "" && (k.id == kid || k.print == kid):
			named = true
			if fits {
				fit = append(fit, k)
			}
		case fits && (kid == "" || k.id == ""):
			anonymous = append(anonymous, k)
		}
	}
	if named {
		return fit, true
	}
	return anonymous, false
}

// takes tells whether any key is for an algorithm.
func (s *keySet) takes(alg string) bool {
	return slices.ContainsFunc(s.keys, func(k *key) bool { return slices.Contains(k.algs, alg) })
}

// named tells whether any key goes by a name that its set gives it.
func (s *keySet) named() bool {
	return slices.ContainsFunc(s.keys, func(k *key) bool { return k.id != "" })
}

// holds tells whether a public key is there still, for an algorithm.
func (s *keySet) holds(print, alg string) bool {
	return slices.ContainsFunc(s.keys, func(k *key) bool { return k.print == print && slices.Contains(k.algs, alg) })
}

// same tells whether two sets verify the same tokens.
func (s *keySet) same(o *keySet) bool {
	return s.partial == o.partial && slices.EqualFunc(s.keys, o.keys, func(a, b *key) bool {
		return a == b || a.id == b.id && a.print != "" && a.print == b.print && slices.Equal(a.algs, b.algs)
	})
}

// static reads the keys that do not change.
func (k Keys) static() ([]*key, error) {
	var keys []*key
	if len(k.Secret) > 0 {
		if what := looksLikeKey(k.Secret); what != "" {
			// With it, everybody who has the public key could sign: CVE-2015-9235.
			return nil, fmt.Errorf("the secret is %s: give public keys as such, and as the secret random bytes that only the server and who makes the tokens know", what)
		}
		secret, err := newKey(bytes.Clone(k.Secret))
		if err != nil {
			return nil, err
		}
		keys = append(keys, secret)
	}
	if len(k.Public) > 0 {
		public, err := parsePublic(k.Public)
		if err != nil {
			return nil, err
		}
		keys = append(keys, public...)
	}
	return keys, nil
}

var jwkMember = regexp.MustCompile(`"(kty|keys)"\s*:`)

// looksLikeKey names what kind of key somebody has mistaken for a secret, or "".
func looksLikeKey(secret []byte) string {
	s := strings.TrimSpace(strings.TrimPrefix(string(secret), "\uFEFF"))
	switch {
	case strings.Contains(s, "-----BEGIN "), strings.Contains(s, "---- BEGIN "):
		return "a key in PEM"
	case strings.HasPrefix(s, "{") && jwkMember.MatchString(s):
		return "a JSON Web Key"
	}
	for _, prefix := range []string{"ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"} {
		if strings.HasPrefix(s, prefix) {
			return "an SSH key"
		}
	}
	der := secret
	if text, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), "")); err == nil {
		der = text // the inside of a PEM block
	}
	if _, err := x509.ParsePKIXPublicKey(der); err == nil {
		return "a public key"
	}
	if _, err := x509.ParsePKCS1PublicKey(der); err == nil {
		return "a public key"
	}
	if _, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		return "a private key"
	}
	if _, err := x509.ParseCertificate(der); err == nil {
		return "a certificate"
	}
	return ""
}

// parsePublic reads public keys in PEM.
func parsePublic(text []byte) ([]*key, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("the public keys have more than %d bytes", maxPEM)
	}
	var keys []*key
	begun := bytes.Count(text, []byte("-----BEGIN "))
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if len(keys) == maxKeys {
			return nil, fmt.Errorf("there are more than %d public keys", maxKeys)
		}
		k, err := publicOf(block)
		if err != nil {
			return nil, fmt.Errorf("public key %d: %w", len(keys)+1, err)
		}
		keys = append(keys, k)
	}
	switch {
	case len(keys) == 0 && looksLikeKey(text) == "an SSH key":
		return nil, errors.New(`this is an SSH key, not PEM: ssh-keygen -e -m PKCS8 -f FILE writes RSA and ECDSA keys as PEM`)
	case len(keys) == 0 && looksLikeKey(text) == "a JSON Web Key":
		return nil, errors.New("this is a JSON Web Key, not PEM: serve it, and name its URL as the JWKS")
	case len(keys) == 0:
		return nil, errors.New(`there is no public key here: one in PEM begins with "-----BEGIN PUBLIC KEY-----"`)
	case len(keys) != begun: // what can't be decoded is skipped by package pem
		return nil, fmt.Errorf("there are %d PEM blocks, but only %d can be read", begun, len(keys))
	}
	return keys, nil
}

func publicOf(block *pem.Block) (*key, error) {
	switch block.Type {
	case "PUBLIC KEY":
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("can't be read: %w", err)
		}
		return newKey(public)
	case "RSA PUBLIC KEY":
		public, err := x509.ParsePKCS1PublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("can't be read: %w", err)
		}
		return newKey(public)
	case "CERTIFICATE":
		return nil, errors.New("this is a certificate, whose end nobody would check: openssl x509 -in FILE -pubkey -noout writes its key")
	}
	if strings.HasSuffix(block.Type, "PRIVATE KEY") {
		return nil, errors.New("this is a private key, which belongs only to who makes the tokens: openssl pkey -in FILE -pubout writes the public one")
	}
	return nil, fmt.Errorf("%q is not a public key", clip(block.Type))
}
