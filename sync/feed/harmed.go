package feed

import "strings"

// Named is a change as far as a group that does not prove itself any more still tells.
type Named struct {
	Seq                     Seq // 0: not known
	Tenant, Collection, Key string
}

// ReadHarmed names the changes that are in the bytes of a harmed group, wherever in b it
// begins, for whoever must tell what was lost. What it says is a guess: it checks forms,
// not sums, and ends where nothing can be read any more.
func ReadHarmed(b []byte) (named []Named) {
	text := string(b)
	i := strings.Index(text, groupMagic[:3])
	if i < 0 || len(text) < i+len(groupMagic) {
		return nil
	}
	magic := text[i : i+len(groupMagic)]
	first := magic == groupFirst
	d := NewDecoder(text[i+len(groupMagic):])
	seq := d.passPlace()
	if seq > MaxSeq {
		seq = 0
	}
	d.passHead(magic, func(string) {})
	for range d.Count(3) {
		tenant := d.Text()
		d.Text()
		for range d.Count(5) {
			d.Byte()
			n := Named{Tenant: tenant, Collection: d.Text(), Key: d.Text()}
			if n.Seq = seq; seq != 0 {
				seq++
			}
			if CheckTenant(tenant) != nil || CheckCollection(n.Collection) != nil || CheckKey(n.Key) != nil {
				return named
			}
			named = append(named, n)
			d.Text()
			if d.Text() != "" {
				d.Take(len(Digest{}))
			}
			if !first {
				d.Uint()
			}
			if d.Err() != nil {
				return named
			}
		}
	}
	return named
}

// passPlace goes over where a group stands, after its magic, and returns its first sequence. Like
// passHead, it is for those who read what DecodeGroup refuses: it checks nothing but forms.
func (d *Decoder) passPlace() Seq {
	d.Text()
	d.Uint()
	return Seq(d.Uint())
}

// passHead goes over the rest of what stands before the transactions; named is called for each tenant
// in it, when its name was read and nothing after it.
func (d *Decoder) passHead(magic string, named func(tenant string)) {
	d.Uint()
	if magic != groupFirst {
		d.Times()
	}
	d.Take(len(Sum{}))
	d.Uint()
	d.Uint()
	if magic != groupFirst {
		for range d.Count(2) {
			named(d.Text())
			d.Uint()
		}
	}
	if magic == groupDrops {
		for range d.Count(1) {
			named(d.Text())
		}
	}
}
