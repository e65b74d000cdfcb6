package feed

// Wipe overwrites what a tenant wrote, up to a sequence, in the bytes of a whole group, and
// tells whether there was any: names, values, ids and digests become zeros, also the tenant's
// own name, which then is nobody's; where else it is named, the name becomes dashes. How many
// records there are and how long what they held was stays, and so all that others wrote. The
// group's sum does not match any more, and is as it was.
func Wipe(group []byte, tenant string, upTo Seq) (wiped bool) {
	body := group[:max(0, len(group)-len(Sum{}))]
	d := NewDecoder(string(body))
	magic := d.Take(len(groupMagic))
	first := magic == groupFirst
	// over overwrites the n bytes that were read last.
	over := func(n int, by byte) {
		end := len(body) - d.Rest()
		for i := end - n; i < end && d.Err() == nil; i++ {
			body[i] = by
		}
		wiped = wiped || d.Err() == nil
	}
	seq := d.passPlace()
	if d.Err() != nil || seq > upTo+1 { // one without records stands before the sequence that follows
		return false
	}
	d.passHead(magic, func(name string) {
		if name == tenant {
			over(len(tenant), '-')
		}
	})
	for range d.Count(3) {
		text := func(mine bool) string {
			s := d.Text()
			if mine {
				over(len(s), 0)
			}
			return s
		}
		t := d.Text()
		mine := t == tenant && seq <= upTo
		if mine {
			over(len(t), 0)
		}
		text(mine)
		n := d.Count(5)
		for range n {
			d.Byte()
			for range 3 { // collection, key, value
				text(mine)
			}
			if text(mine) != "" {
				digest := d.Take(len(Digest{}))
				if mine {
					over(len(digest), 0)
				}
			}
			if !first {
				d.Uint()
			}
		}
		seq += Seq(n)
	}
	return wiped
}

// Wiped tells whether a transaction is one that Wipe has overwritten.
func (t *Transaction) Wiped() bool { return t.Tenant != "" && t.Tenant[0] == 0 }
