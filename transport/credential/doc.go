// Package credential turns what a caller shows into a [hub.Grant]: a [Verifier] reads
// JSON Web Tokens, a [Forward] asks the app.
//
// # Tokens
//
// A token is a JWT in the compact form of a JWS (RFC 7515, 7519), at most [MaxToken] bytes:
//
//	{"tenant":"acme","read":["**"],"write":["todos","lists/*"],"sub":"ada","exp":1893456000}
//
//	tenant   required  a tenant, or "*" for all
//	exp      required  when it ends, in seconds since 1970; no leeway: at exp it is over
//	read     optional  patterns of the collections that may be read; none if absent
//	write    optional  the same for writing; together at most 256 patterns
//	filters  optional  pattern → expression: which rows of them, at most 32 of 2 KiB
//	sub, jti optional  whose it is and its own name, at most 200 bytes each: for revoking
//	iat, nbf optional  not in the future, but for the leeway
//	admin    optional  true: may revoke, and forget tenants
//	iss, aud           must be the configured ones, where such are configured
//
// A pattern has 1 to 8 segments joined by "/", each a name of [A-Za-z0-9_-]{1,64} or "*"
// for any one; "**", only as the last, stands for one segment or more. Other claims are for the
// filters.
//
// What a token says about how it should be verified is not believed (RFC 8725). Which
// algorithms a key takes is settled by its type, at start; jku, x5u, jwk and x5c are
// ignored; kid only chooses among the keys that there are; crit is refused, whatever it
// names. Less formally: the server's configuration says who is trusted, the token only
// says that it is from one of them.
//
// # Forward auth
//
// Apps that have sessions of their own make no tokens. A [Forward] shows the app the
// request's Authorization and Cookie, and the app answers with the same claims.
//
// # Errors
//
// Every refusal is a [*Refused], whose message is fit for the client: it never holds the
// token, a key or a cookie. It unwraps to a [*hub.Refusal], so that the transports know
// how to answer: 401, 403 or 503.
package credential
