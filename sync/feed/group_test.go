package feed_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/sync/feed"
)

func aGroup() *feed.Group {
	return &feed.Group{
		Epoch: "k3f9a1", Position: 300, First: 1042, At: 1760000000123, Prev: feed.Sum{1, 2, 3},
		Times: feed.Times{Age: 1750000000456, Steady: 1760000003789, Boot: 1<<64 - 1, Up: 86400000},
		Transactions: []feed.Transaction{
			{Tenant: "acme", Client: "c-81", Records: []feed.Record{
				{Op: feed.Insert, Collection: "todos", Key: "1", ID: "m-7", Digest: feed.Digest{9}, Value: `{"title":"milk"}`, Expires: 1760000063789},
				{Op: feed.Remove, Collection: "projects/7/todos", Key: "ключ"},
			}},
			{Tenant: "other", Records: []feed.Record{{Op: feed.Noop, Collection: "todos", Key: "1", ID: "m-8"}}},
		},
		ForgetTombstones: 1759000000000, ForgetIDs: 1760000000000,
		ForgetIDsOf: []feed.IDFloor{{Tenant: "acme", Seq: 17}, {Tenant: "other", Seq: 1041}},
	}
}

// first makes a group into what version 1 could say of it.
func first(g *feed.Group) *feed.Group {
	g.Times, g.ForgetIDsOf = feed.Times{Age: g.At, Steady: g.At}, nil
	for _, x := range g.Transactions {
		for i := range x.Records {
			x.Records[i].Expires = 0
		}
	}
	return g
}

// groupV1 is aGroup as version 1 wrote it.
func groupV1(t testing.TB) []byte {
	b, err := os.ReadFile("testdata/group.v1")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestALogOfTheVersionBeforeIsRead(t *testing.T) {
	b := groupV1(t)
	g, sum, err := feed.DecodeGroup(b)
	if want := first(aGroup()); err != nil || !reflect.DeepEqual(g, want) || !bytes.Equal(sum[:], b[len(b)-len(sum):]) {
		t.Errorf("%+v, %v; want %+v", g, err, want)
	}
}

// sign makes a body into what AppendGroup would have made of it.
func sign(body []byte) []byte {
	sum := sha256.Sum256(body)
	return append(bytes.Clone(body), sum[:16]...)
}

func TestAGroupIsReadBackAsItWasWritten(t *testing.T) {
	large := aGroup()
	for len(large.Transactions[0].Records) < feed.MaxChanges {
		large.Transactions[0].Records = append(large.Transactions[0].Records,
			feed.Record{Op: feed.Modify, Collection: "todos", Key: "k", Value: `{"v":"` + strings.Repeat("v", 300) + `"}`})
	}
	drops := aGroup()
	drops.Drop = []string{"acme", "other"}
	for _, g := range []*feed.Group{aGroup(), large, drops, {Epoch: "0000", Transactions: []feed.Transaction{}}} {
		b, sum := feed.AppendGroup([]byte("before"), g)
		got, gotSum, err := feed.DecodeGroup(b[len("before"):])
		if err != nil || gotSum != sum || !reflect.DeepEqual(got, g) {
			t.Fatalf("%+v became %+v, %v", g, got, err)
		}
		if got.Prev = sum; sum == (feed.Sum{}) {
			t.Fatal("the sum is empty")
		}
	}
}

func TestAGroupThatWasHarmedIsNotRead(t *testing.T) {
	b, _ := feed.AppendGroup(nil, aGroup())
	refused := func(what string, b []byte) {
		t.Helper()
		if g, _, err := feed.DecodeGroup(b); g != nil || !errors.Is(err, feed.ErrGroup) {
			t.Errorf("%s: %v, %v", what, g, err)
		}
	}
	for i := range b {
		refused("cut", b[:i])
		for bit := range 8 {
			harmed := bytes.Clone(b)
			harmed[i] ^= 1 << bit
			refused("flipped", harmed)
		}
	}
	refused("longer", append(bytes.Clone(b), 0))
	refused("twice", append(bytes.Clone(b), b...))
}

func TestAGroupThatNoWriterMakesIsNotReadThoughItsSumIsRight(t *testing.T) {
	for what, change := range map[string]func(g *feed.Group){
		"epoch":            func(g *feed.Group) { g.Epoch = "K" },
		"operation":        func(g *feed.Group) { g.Transactions[0].Records[0].Op = 5 },
		"no operation":     func(g *feed.Group) { g.Transactions[0].Records[0].Op = 0 },
		"no value":         func(g *feed.Group) { g.Transactions[0].Records[0].Value = "" },
		"remove's value":   func(g *feed.Group) { g.Transactions[0].Records[1].Value = "{}" },
		"sequence":         func(g *feed.Group) { g.First = feed.MaxSeq - 2 },
		"sequence beyond":  func(g *feed.Group) { g.First = feed.MaxSeq + 1 },
		"time":             func(g *feed.Group) { g.At = -1 },
		"age":              func(g *feed.Group) { g.Age = -1 },
		"steady time":      func(g *feed.Group) { g.Steady = feed.MaxTime + 1 },
		"time since boot":  func(g *feed.Group) { g.Up = -1 },
		"deadline":         func(g *feed.Group) { g.Transactions[0].Records[0].Expires = -1 },
		"remove's":         func(g *feed.Group) { g.Transactions[0].Records[1].Expires = 1 },
		"time of forgets":  func(g *feed.Group) { g.ForgetIDs = 1 << 60 },
		"drops nobody":     func(g *feed.Group) { g.Drop = []string{""} },
		"drops all":        func(g *feed.Group) { g.Drop = []string{"*"} },
		"too many changes": func(g *feed.Group) { g.Transactions[0].Records = make([]feed.Record, feed.MaxChanges+1) },
	} {
		g := aGroup()
		change(g)
		b, _ := feed.AppendGroup(nil, g)
		if _, _, err := feed.DecodeGroup(b); !errors.Is(err, feed.ErrGroup) {
			t.Errorf("%s: %v", what, err)
		}
	}
	b, _ := feed.AppendGroup(nil, &feed.Group{Epoch: "0000"})
	if _, _, err := feed.DecodeGroup(sign(longer(b[:len(b)-16]))); !errors.Is(err, feed.ErrGroup) {
		t.Errorf("a number that is longer than it need be: %v", err)
	}
	b, _ = feed.AppendGroup(nil, aGroup())
	b[3] = 4
	if _, _, err := feed.DecodeGroup(sign(b[:len(b)-16])); err == nil || !strings.Contains(err.Error(), "use a newer one") {
		t.Errorf("a group of the next version: %v", err)
	}
}

// longer writes the position of a group, which is 0, with two bytes.
func longer(body []byte) []byte {
	at := len("tmg\x02\x040000")
	return slices.Insert(bytes.Clone(body), at, 0x80)
}

// FuzzGroup reads any bytes, as they are and with the sum that they should have: what
// is read has those bytes and no others, and a harmed bit or a missing end is noticed.
func FuzzGroup(f *testing.F) {
	b, _ := feed.AppendGroup(nil, aGroup())
	f.Add(b, uint(17), uint(40))
	f.Add(b[:len(b)-16], uint(17), uint(40))
	empty, _ := feed.AppendGroup(nil, &feed.Group{Epoch: "0000"})
	f.Add(empty[:len(empty)-16], uint(0), uint(0))
	f.Add(longer(empty[:len(empty)-16]), uint(0), uint(0))
	drops := aGroup()
	drops.Drop = []string{"acme"}
	b, _ = feed.AppendGroup(nil, drops)
	f.Add(b, uint(17), uint(40))
	f.Add(b[:len(b)-16], uint(17), uint(40))
	old := groupV1(f)
	f.Add(old, uint(17), uint(40))
	f.Add(old[:len(old)-16], uint(31), uint(40))
	f.Fuzz(func(t *testing.T, b []byte, bit, end uint) {
		for _, b := range [][]byte{b, sign(b)} {
			g, sum, err := feed.DecodeGroup(b)
			if err != nil {
				if g != nil || !errors.Is(err, feed.ErrGroup) {
					t.Fatalf("%v, %v", g, err)
				}
				continue
			}
			again, againSum := feed.AppendGroup(nil, g)
			if b[3] == 1 {
				// It is written as this version does, which says the same.
				g2, _, err := feed.DecodeGroup(again)
				if err != nil || !reflect.DeepEqual(g, g2) {
					t.Fatalf("%x was read as %+v, and that as %+v, %v", b, g, g2, err)
				}
			} else if !bytes.Equal(again, b) || sum != againSum {
				t.Fatalf("%x was read as %+v, which is %x", b, g, again)
			}
			harmed := bytes.Clone(b)
			harmed[bit/8%uint(len(b))] ^= 1 << (bit % 8)
			if _, _, err := feed.DecodeGroup(harmed); err == nil {
				t.Fatalf("bit %d of %x was flipped and not noticed", bit, b)
			}
			if _, _, err := feed.DecodeGroup(b[:end%uint(len(b))]); err == nil {
				t.Fatalf("%x was cut and not noticed", b)
			}
			// Its changes can be shown, whatever it holds.
			for _, x := range g.Transactions {
				for i, r := range x.Records {
					feed.NewChange(feed.Fields{Seq: g.First, Collection: r.Collection, Op: r.Op, Key: r.Key, Value: r.Value, At: g.At,
						Client: x.Client, ID: r.ID, Tail: uint16(len(x.Records) - 1 - i)})
				}
			}
		}
	})
}

func TestAHarmedGroupOfAnyVersionNamesItsChanges(t *testing.T) {
	drops := aGroup()
	drops.Drop = []string{"acme", "other"}
	for name, g := range map[string]*feed.Group{"usual": aGroup(), "that drops tenants": drops} {
		b, _ := feed.AppendGroup(nil, g)
		b[len(b)-1] ^= 1
		named := feed.ReadHarmed(b)
		records := 0
		for _, x := range g.Transactions {
			records += len(x.Records)
		}
		if len(named) != records || named[0].Key != g.Transactions[0].Records[0].Key {
			t.Errorf("a group %s: %+v", name, named)
		}
	}
}
