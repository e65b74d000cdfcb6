package feed_test

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

// TestWipeLeavesNothingOfATenantAndAllOfOthers, whatever the version of the group.
func TestWipeLeavesNothingOfATenantAndAllOfOthers(t *testing.T) {
	const canary = "CANARY"
	g := aGroup()
	for i := range g.Transactions { // theirs, then one of another, then theirs again
		g.Transactions[i].Tenant = canary
		g.Transactions[i].Client = canary + "-c"
		for j := range g.Transactions[i].Records {
			r := &g.Transactions[i].Records[j]
			r.Collection, r.Key = canary+"/x", canary
			if r.Value != "" {
				r.Value = `{"v":"` + canary + `"}`
			}
			if r.ID != "" {
				r.ID, r.Digest = canary, feed.Digest([]byte("CANARYCANARYCANA"))
			}
		}
	}
	other := aGroup().Transactions[0]
	g.Transactions = []feed.Transaction{g.Transactions[0], other, g.Transactions[1]}
	g.ForgetIDsOf = []feed.IDFloor{{Tenant: canary, Seq: 17}, {Tenant: "acme", Seq: 1041}}
	drops := *g
	drops.Drop = []string{"acme", canary}
	encode := func(g *feed.Group) []byte { b, _ := feed.AppendGroup(nil, g); return b }
	for name, b := range map[string][]byte{"now": encode(g), "that drops": encode(&drops)} {
		whole, _, err := feed.DecodeGroup(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			tenant string
			upTo   feed.Seq
			wiped  bool
		}{{"CANAR", feed.MaxSeq - 1, false}, {canary, g.First - 2, false}, {canary, g.First + 1, true}, {canary, feed.MaxSeq - 1, true}} {
			w := bytes.Clone(b)
			if got := feed.Wipe(w, c.tenant, c.upTo); got != c.wiped || !got && !bytes.Equal(w, b) || len(w) != len(b) {
				t.Fatalf("%s, %+v: %v", name, c, got)
			}
			if !bytes.Equal(w[len(w)-16:], b[len(b)-16:]) {
				t.Errorf("%s: its sum is another", name)
			}
			all := c.wiped && c.upTo > g.First+4
			if all && bytes.Contains(w, []byte(canary)) {
				t.Errorf("%s: it is still there: %q", name, w)
			}
			sum := sha256.Sum256(w[:len(w)-16])
			left, _, err := feed.DecodeGroup(append(w[:len(w)-16], sum[:16]...))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for i, x := range left.Transactions {
				mine := c.wiped && (i == 0 || i == 2 && all)
				if x.Wiped() != mine || len(x.Records) != len(whole.Transactions[i].Records) {
					t.Errorf("%s, %+v: transaction %d is %+v", name, c, i, x)
				}
				if !mine && (x.Tenant != whole.Transactions[i].Tenant || x.Records[0] != whole.Transactions[i].Records[0]) {
					t.Errorf("%s, %+v: transaction %d is %+v instead of %+v", name, c, i, x, whole.Transactions[i])
				}
			}
			if left.Prev != g.Prev || left.First != g.First || left.Last() != g.Last() {
				t.Errorf("%s: its place is %+v", name, left)
			}
		}
	}
	old := groupV1(t)
	if !feed.Wipe(old, "acme", feed.MaxSeq-1) || bytes.Contains(old, []byte("acme")) || bytes.Contains(old, []byte("milk")) || !bytes.Contains(old, []byte("other")) {
		t.Errorf("of version 1 is left %q", old)
	}
	for n := range len(encode(g)) { // what is cut short is no group, and must not stop anybody
		feed.Wipe(encode(g)[:n], canary, feed.MaxSeq-1)
	}
}
