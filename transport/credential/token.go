package credential

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"unicode"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/tidemark-sync/tidemark/sync/hub"
)

// Bounds of a token, and of what an app answers.
const (
	// MaxToken is the most bytes that a token may have.
	MaxToken = 8 << 10

	maxDepth    = 16
	maxElements = 4096
	maxText     = 200 // bytes of sub, jti and kid
)

// token is one in its compact form (RFC 7515 section 3.1), read but not believed.
type token struct {
	alg, kid  string
	signed    string // what the signature is over
	signature []byte
	claims    map[string]any
}

// strict refuses trailing bits (RFC 4648 section 3.5): a token is written in one way.
var strict = base64.RawURLEncoding.Strict()

// parse reads a token. It is stricter than golang-jwt's parser, which takes members that
// come twice (the last wins: RFC 8725 section 2.4, and two parsers may take two tenants
// from one token), line ends inside base64, and any depth; so that one is not used, only
// its algorithms are.
func parse(text string) (*token, error) {
	if len(text) > MaxToken {
		return nil, refuse(TooLarge, "the token has %d bytes, and may have %d", len(text), MaxToken)
	}
	// Cut and not split: many dots would make many strings (CVE-2025-30204).
	header, rest, ok := strings.Cut(text, ".")
	payload, signature, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || strings.Contains(signature, ".") {
		if strings.Count(text, ".") == 4 {
			return nil, refuse(Malformed, "the token is encrypted (JWE): send a signed one")
		}
		return nil, refuse(Malformed, "the token is not three parts joined by dots, as a JWT is")
	}
	t := &token{signed: text[:len(header)+1+len(payload)]}
	if err := t.readHeader(header); err != nil {
		return nil, err
	}
	raw, err := decode("payload", payload)
	if err != nil {
		return nil, err
	}
	if t.claims, err = object("payload", raw); err != nil {
		return nil, err
	}
	if t.signature, err = decode("signature", signature); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *token) readHeader(text string) error {
	raw, err := decode("header", text)
	if err != nil {
		return err
	}
	header, err := object("header", raw)
	if err != nil {
		return err
	}
	alg, ok := header["alg"].(string)
	switch {
	case !ok:
		return refuse(Malformed, "the token's header has no alg")
	case methods[alg] == nil:
		return refuse(Algorithm, "the token's alg is none of HS256, RS256, PS256, ES256, EdDSA and their like")
	}
	t.alg = alg
	// None is understood, so each is refused: RFC 7515 section 4.1.11.
	if _, ok := header["crit"]; ok {
		return refuse(Malformed, "the token's header has crit, which asks for what this server does not do")
	}
	if b64, ok := header["b64"]; ok && b64 != true { // RFC 7797
		return refuse(Malformed, "the token's header has b64, which this server does not do")
	}
	if kid, ok := header["kid"]; ok {
		if t.kid, ok = kid.(string); !ok || !printable(t.kid) {
			return refuse(Malformed, "the token's kid is not a string of at most %d bytes without control characters", maxText)
		}
	}
	return nil
}

// decode reads a part of a token: base64url without padding, and nothing else. Go's decoder skips
// line ends, so what is not of the alphabet is refused first.
func decode(what, text string) ([]byte, error) {
	for i := range len(text) {
		c := text[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return nil, refuse(Malformed, "the token's %s is not base64url without padding", what)
		}
	}
	raw, err := strict.DecodeString(text)
	if err != nil {
		return nil, refuse(Malformed, "the token's %s is not base64url without padding: it was cut off, or changed", what)
	}
	return raw, nil
}

// object reads a JSON object of a stranger: no member twice, no invalid UTF-8, not
// deep, not many. Numbers stay as they are written, json.Number: of two large ids that are the same as
// floats, one must not pass for the other in a filter.
func object(what string, raw []byte) (map[string]any, error) {
	if err := hub.CheckBounds(raw, maxDepth, maxElements); err != nil {
		return nil, refuse(Malformed, "the token's %s %s", what, err)
	}
	// Twice: the first is strict, also about numbers that are past all; the second keeps them.
	var m map[string]any
	if err := jsonv2.Unmarshal(raw, &m); err != nil || m == nil {
		// The error would quote the token.
		return nil, refuse(Malformed, "the token's %s is not a JSON object, or has a member twice", what)
	}
	exact := json.NewDecoder(bytes.NewReader(raw))
	exact.UseNumber()
	m = nil
	if err := exact.Decode(&m); err != nil {
		return nil, refuse(Malformed, "the token's %s is not a JSON object", what)
	}
	return m, nil
}

// printable tells whether text, which came as JSON and so is UTF-8, may be an id.
func printable(s string) bool {
	return len(s) <= maxText && !strings.ContainsFunc(s, unicode.IsControl)
}
