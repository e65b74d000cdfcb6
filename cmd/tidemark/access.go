package main

import (
	"context"
	"fmt"
	"net"

	"github.com/tidemark-sync/tidemark/sync/filter"
	"github.com/tidemark-sync/tidemark/sync/hub"
	"github.com/tidemark-sync/tidemark/transport"
	"github.com/tidemark-sync/tidemark/transport/credential"
)

// Access is who may use the server. The zero value is a server without credentials, which
// listens on loopback only.
type Access struct {
	JWTSecretFile string   `type:"existingfile" placeholder:"FILE" group:"Who may" help:"Take tokens signed with the secret in this file (HS256). The secret may also stand in the environment, as TIDEMARK_JWT_SECRET."`
	JWTPublicKey  string   `type:"existingfile" placeholder:"FILE" group:"Who may" help:"Take tokens signed for these public keys (PEM: RSA, ECDSA, Ed25519)."`
	JWKSURL       string   `name:"jwks-url" placeholder:"URL" group:"Who may" help:"Take tokens signed for the public keys of this JSON Web Key Set. It is read again every 10 min, and when a token names a key that is not there."`
	JWTIssuer     string   `placeholder:"NAME" group:"Who may" help:"What a token's iss must be. Default: anything."`
	JWTAudience   string   `placeholder:"NAME" group:"Who may" help:"What a token's aud must be or hold. Default: anything."`
	AuthURL       string   `name:"auth-url" placeholder:"URL" group:"Who may" help:"Ask the app: it is sent the request's Authorization and Cookie, and answers with claims. Instead of tokens."`
	AuthCookies   []string `placeholder:"NAME" group:"Who may" help:"The cookies that --auth-url is sent. Default: all."`
	Origins       []string `placeholder:"ORIGIN" group:"Who may" help:"Pages that may use the server, like https://app.example.com; may be repeated. * is any page, with a token or a ticket: cookies count for those alone that are named."`

	InsecureNoCredentials bool `group:"Who may" help:"Do without credentials wherever it listens: whoever reaches it may read and write everything."`
	InsecureHTTPKeys      bool `name:"insecure-http-keys" group:"Who may" help:"Let --jwks-url and --auth-url be http on other machines: whoever is on the way can then let anybody in."`
}

// settled is who may, as the server needs it.
type settled struct {
	authorizer transport.Authorizer
	origins    transport.Origins
	close      func()
	warnings   []string // said at each start and by /readyz
}

// settle reads keys and makes an Authorizer, or says what is missing. listen is where the
// server will be reached.
func (c *Config) settle(ctx context.Context) (s settled, err error) {
	a := &c.Access
	s.close = func() {}
	if s.origins, err = transport.ParseOrigins(a.Origins); err != nil {
		return s, misuse("--origins: %w", err)
	}
	if a.InsecureHTTPKeys {
		s.warnings = append(s.warnings, "--insecure-http-keys: keys and answers of the app may come over plain HTTP, where they can be changed on the way")
	}
	secret, err := jwtSecret(a.JWTSecretFile)
	if err != nil {
		return s, fmt.Errorf("--jwt-secret-file: %w", err)
	}
	tokens := secret != nil || a.JWTPublicKey != "" || a.JWKSURL != ""
	switch {
	case !tokens && (a.JWTIssuer != "" || a.JWTAudience != ""):
		return s, misuse("--jwt-issuer and --jwt-audience are for tokens, and nothing says who signs them: add --jwt-public-key, --jwks-url or --jwt-secret-file")
	case a.AuthURL == "" && len(a.AuthCookies) > 0:
		return s, misuse("--auth-cookies is for --auth-url, which is missing")
	case tokens && a.AuthURL != "":
		return s, misuse("--auth-url is instead of tokens: leave it or --jwt-… and --jwks-url out")
	case (tokens || a.AuthURL != "") && a.InsecureNoCredentials:
		return s, misuse("--insecure-no-credentials is for a server without them: leave it out, or what makes credentials")
	case tokens:
		err = c.tokens(ctx, &s, secret)
		return s, err
	case a.AuthURL != "":
		f, err := credential.NewForward(credential.ForwardOptions{
			URL: a.AuthURL, InsecureHTTP: a.InsecureHTTPKeys, Cookies: a.AuthCookies, Filter: compileFilter, Logger: c.Logger,
		})
		if err != nil {
			return s, misuse("--auth-url: %w", err)
		}
		s.authorizer, s.close = transport.App{Asker: f, Origins: s.origins}, f.Close
		return s, nil
	case a.InsecureNoCredentials:
		s.authorizer = transport.Everybody{Origins: s.origins}
		s.warnings = append(s.warnings, "--insecure-no-credentials: whoever reaches this server may read and write everything")
		return s, nil
	case !loopbackListen(c.Listen):
		return s, misuse("--listen %s is refused without credentials: whoever reached it could read and write everything. Make keys, and say who signs tokens:\n\n"+
			"    tidemark keys --out keys\n    tidemark serve … --jwt-public-key keys/public.pem\n\n"+
			"or let --jwks-url or --auth-url name your app; or listen on 127.0.0.1", c.Listen)
	}
	if len(a.Origins) > 0 {
		return s, misuse("--origins is for a server with credentials: one without serves the pages of this machine, and no others")
	}
	s.authorizer, s.origins = transport.Loopback{}, transport.LoopbackOrigins
	return s, nil
}

func (c *Config) tokens(ctx context.Context, s *settled, secret []byte) error {
	a := &c.Access
	o := credential.Options{
		Keys:   credential.Keys{Secret: secret, JWKS: a.JWKSURL, InsecureHTTP: a.InsecureHTTPKeys},
		Issuer: a.JWTIssuer, Audience: a.JWTAudience, Filter: compileFilter, Logger: c.Logger,
	}
	if a.JWTPublicKey != "" {
		var err error
		if o.Public, err = readKeyFile(a.JWTPublicKey); err != nil {
			return fmt.Errorf("--jwt-public-key: %w", err)
		}
	}
	v, err := credential.New(ctx, o)
	if err != nil {
		return fmt.Errorf("the keys of tokens: %w", err)
	}
	s.authorizer, s.close = transport.Tokens{Verifier: v, Origins: s.origins}, v.Close
	return nil
}

func compileFilter(expression string, claims map[string]any) (hub.Filter, error) {
	return filter.Compile(expression, claims)
}

// loopbackListen tells whether an address to listen on is of this machine alone.
func loopbackListen(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}
