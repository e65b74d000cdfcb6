package gate_test

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/transport/gate"
)

func trusted(t testing.TB, list ...string) []netip.Prefix {
	t.Helper()
	p, err := gate.ParseTrusted(list)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func from(remote string, forwarded ...string) *http.Request {
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = remote
	for _, line := range forwarded {
		r.Header.Add("X-Forwarded-For", line)
	}
	return r
}

// proxies are those of most tests: one network of each family.
var proxies = []string{"10.0.0.0/8", "127.0.0.1", "fd00::/8", "::1"}

func TestClientCannotChooseItsAddress(t *testing.T) {
	long := strings.Repeat("9", 100)
	for name, c := range map[string]struct {
		remote    string
		forwarded []string
		want      string
	}{
		"directly":                          {"203.0.113.7:5000", nil, "203.0.113.7"},
		"directly, over IPv6":               {"[2001:db8::7]:5000", nil, "2001:db8::7"},
		"directly, claiming another":        {"203.0.113.7:5000", []string{"198.51.100.1"}, "203.0.113.7"},
		"directly, claiming a proxy":        {"203.0.113.7:5000", []string{"10.0.0.1"}, "203.0.113.7"},
		"through a proxy":                   {"10.0.0.1:80", []string{"203.0.113.7"}, "203.0.113.7"},
		"through two":                       {"10.0.0.1:80", []string{"203.0.113.7, 10.0.0.2"}, "203.0.113.7"},
		"through three of both families":    {"[::1]:80", []string{"203.0.113.7, fd00::3,10.0.0.2"}, "203.0.113.7"},
		"through two, on two lines":         {"10.0.0.1:80", []string{"203.0.113.7", "10.0.0.2"}, "203.0.113.7"},
		"claiming another before the proxy": {"10.0.0.1:80", []string{"198.51.100.1, 203.0.113.7"}, "203.0.113.7"},
		"claiming it on a line of its own":  {"10.0.0.1:80", []string{"198.51.100.1", "203.0.113.7"}, "203.0.113.7"},
		"claiming a proxy":                  {"10.0.0.1:80", []string{"10.0.0.9, 203.0.113.7"}, "203.0.113.7"},
		"claiming a chain of proxies":       {"10.0.0.1:80", []string{"198.51.100.1, 10.0.0.9, 10.0.0.8, 203.0.113.7, 10.0.0.2"}, "203.0.113.7"},
		"claiming garbage":                  {"10.0.0.1:80", []string{"<script>, 203.0.113.7"}, "203.0.113.7"},
		"claiming nothing, with commas":     {"10.0.0.1:80", []string{",,,, 203.0.113.7"}, "203.0.113.7"},
		"claiming very much":                {"10.0.0.1:80", []string{strings.Repeat("1.2.3.4,", 2000) + "203.0.113.7"}, "203.0.113.7"},
		"claiming one long thing":           {"10.0.0.1:80", []string{strings.Repeat("x", 9000) + ",203.0.113.7"}, "203.0.113.7"},
		"claiming many lines":               {"10.0.0.1:80", append(strings.Split(strings.Repeat("1.2.3.4 ", 90), " "), "203.0.113.7"), "203.0.113.7"},
		"with a port":                       {"10.0.0.1:80", []string{"203.0.113.7:61234"}, "203.0.113.7"},
		"IPv6":                              {"10.0.0.1:80", []string{"2001:db8::7"}, "2001:db8::7"},
		"IPv6 in brackets":                  {"10.0.0.1:80", []string{"[2001:db8::7]"}, "2001:db8::7"},
		"IPv6 with a port":                  {"10.0.0.1:80", []string{"[2001:db8::7]:61234"}, "2001:db8::7"},
		"IPv4 in IPv6":                      {"10.0.0.1:80", []string{"::ffff:203.0.113.7"}, "203.0.113.7"},
		"a proxy as IPv4 in IPv6":           {"[::ffff:10.0.0.1]:80", []string{"203.0.113.7, ::ffff:10.0.0.2"}, "203.0.113.7"},
		"tabs and spaces":                   {"10.0.0.1:80", []string{" \t203.0.113.7\t , \t10.0.0.2 "}, "203.0.113.7"},
		"empty elements":                    {"10.0.0.1:80", []string{"203.0.113.7,, ,", ""}, "203.0.113.7"},
		"all are proxies":                   {"10.0.0.1:80", []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		"a proxy that says nothing":         {"10.0.0.1:80", nil, "10.0.0.1"},
		"a proxy that says an empty line":   {"10.0.0.1:80", []string{""}, "10.0.0.1"},
		"a proxy that does not know":        {"10.0.0.1:80", []string{"203.0.113.7, unknown"}, "10.0.0.1"},
		"the second does not know":          {"10.0.0.1:80", []string{"203.0.113.7, _hidden, 10.0.0.2"}, "10.0.0.2"},
		"a zone":                            {"10.0.0.1:80", []string{"fe80::1%eth0"}, "10.0.0.1"},
		"a zone of the peer's":              {"[fe80::1%eth0]:80", []string{"1.2.3.4"}, "fe80::1"},
		"a zone in brackets":                {"10.0.0.1:80", []string{"[fe80::1%eth0]:1"}, "10.0.0.1"},
		"IPv4 in brackets":                  {"10.0.0.1:80", []string{"[203.0.113.7]"}, "10.0.0.1"},
		"half a bracket":                    {"10.0.0.1:80", []string{"[2001:db8::7"}, "10.0.0.1"},
		"octal":                             {"10.0.0.1:80", []string{"0313.0.113.7"}, "10.0.0.1"},
		"one number":                        {"10.0.0.1:80", []string{"3405803783"}, "10.0.0.1"},
		"a name":                            {"10.0.0.1:80", []string{"example.com"}, "10.0.0.1"},
		"a prefix":                          {"10.0.0.1:80", []string{"203.0.113.0/24"}, "10.0.0.1"},
		"quotes":                            {"10.0.0.1:80", []string{`"203.0.113.7"`}, "10.0.0.1"},
		"another separator":                 {"10.0.0.1:80", []string{"203.0.113.7; 203.0.113.8"}, "10.0.0.1"},
		"a no-break space":                  {"10.0.0.1:80", []string{"203.0.113.7\u00a0"}, "10.0.0.1"},
		"nobody's address":                  {"10.0.0.1:80", []string{"0.0.0.0"}, "10.0.0.1"},
		"many people's address":             {"10.0.0.1:80", []string{"ff02::1"}, "10.0.0.1"},
		"too long":                          {"10.0.0.1:80", []string{long}, "10.0.0.1"},
		"more proxies than are looked at":   {"10.0.0.1:80", []string{"203.0.113.7" + strings.Repeat(", 10.0.0.2", 40)}, "10.0.0.2"},
		"a proxy's own loopback":            {"10.0.0.1:80", []string{"127.0.0.2"}, "10.0.0.1"},
		"a proxy's own, over IPv6":          {"[fd00::3]:80", []string{"203.0.113.7, ::ffff:127.0.0.2"}, "fd00::3"},
		"two proxies on another machine":    {"10.0.0.1:80", []string{"203.0.113.7, 127.0.0.1"}, "203.0.113.7"},
		"trusted, on another machine":       {"10.0.0.1:80", []string{"127.0.0.1"}, "10.0.0.1"},
		"here, through a proxy here":        {"127.0.0.1:80", []string{"127.0.0.2"}, "127.0.0.2"},
		"through a proxy here":              {"127.0.0.1:80", []string{"127.0.0.1, 203.0.113.7"}, "203.0.113.7"},
		"a Unix socket":                     {"@", []string{"203.0.113.7"}, "invalid IP"},
		"no peer":                           {"", nil, "invalid IP"},
	} {
		got := gate.ClientAddr(from(c.remote, c.forwarded...), trusted(t, proxies...))
		if got.String() != c.want {
			t.Errorf("%s: %s, not %s", name, got, c.want)
		}
	}
}

func TestForwardedAndItsLikeAreNotRead(t *testing.T) {
	r := from("10.0.0.1:80", "203.0.113.7")
	for _, name := range []string{"Forwarded", "X-Real-Ip", "Cf-Connecting-Ip", "True-Client-Ip", "X-Client-Ip", "X-Forwarded", "X_Forwarded_For"} {
		r.Header.Set(name, "198.51.100.1")
	}
	r.Header.Set("Forwarded", "for=198.51.100.1")
	if got := gate.ClientAddr(r, trusted(t, proxies...)); got.String() != "203.0.113.7" {
		t.Errorf("it is %s", got)
	}
}

func TestNobodyIsTrustedUnlessSaid(t *testing.T) {
	if got := gate.ClientAddr(from("127.0.0.1:80", "203.0.113.7"), nil); got.String() != "127.0.0.1" {
		t.Errorf("it is %s", got)
	}
}

func TestTrustedProxiesAreReadStrictly(t *testing.T) {
	for _, bad := range []string{"", "10.0.0", "10.0.0.0/33", "0.0.0.0/0", "::/0", "::ffff:0.0.0.0/96", "localhost", "fe80::1%eth0", "10.0.0.1:80", "10.0.0.0/08"} {
		if p, err := gate.ParseTrusted([]string{"10.0.0.1", bad}); err == nil {
			t.Errorf("%q is taken as %v", bad, p)
		}
	}
	got := trusted(t, "10.1.2.3/8", "::ffff:192.168.0.0/112", "2001:db8::1")
	for i, want := range []string{"10.0.0.0/8", "192.168.0.0/16", "2001:db8::1/128"} {
		if got[i].String() != want {
			t.Errorf("%s, not %s", got[i], want)
		}
	}
}

func TestAllAddressesOfAHomeAreOne(t *testing.T) {
	for a, want := range map[string]string{
		"203.0.113.7": "203.0.113.7", "::ffff:203.0.113.7": "203.0.113.7", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::", "fe80::1%eth0": "fe80::", "::1": "::",
	} {
		if got := gate.Bounded(netip.MustParseAddr(a)); got.String() != want {
			t.Errorf("%s counts as %s, not %s", a, got, want)
		}
	}
	if got := gate.Bounded(netip.Addr{}); got.IsValid() {
		t.Errorf("no address counts as %s", got)
	}
}

// Whatever a client writes, what its proxy appends is its address.
func FuzzClientAddr(f *testing.F) {
	for _, s := range []string{"", "203.0.113.7", "10.0.0.1, 10.0.0.2", "[::1]:80", "a\nb", ",,,", "unknown", "::ffff:1.2.3.4", "fe80::1%x", strings.Repeat("10.0.0.1,", 40)} {
		f.Add(s, s, "10.0.0.1:80")
	}
	list := trusted(f, proxies...)
	client := netip.MustParseAddr("203.0.113.7")
	f.Fuzz(func(t *testing.T, line, more, remote string) {
		r := from("10.0.0.1:80", line, more+", 203.0.113.7")
		if got := gate.ClientAddr(r, list); got != client {
			t.Errorf("%q and %q make it %s", line, more, got)
		}
		r = from("203.0.113.7:80", line, more)
		if got := gate.ClientAddr(r, list); got != client {
			t.Errorf("without a proxy, %q and %q make it %s", line, more, got)
		}
		r = from(remote, line, more)
		got := gate.ClientAddr(r, list)
		if got.Zone() != "" || got.Is4In6() {
			t.Errorf("%q, %q and %q make it %s", remote, line, more, got)
		}
		r = from("10.0.0.1:80", line, more)
		if got := gate.ClientAddr(r, list); !got.IsValid() {
			t.Errorf("%q and %q make it nobody's", line, more)
		}
	})
}
