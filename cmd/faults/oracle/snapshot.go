package oracle

// checkStarts compares what was there after each start with the model.
func (c *checker) checkStarts() {
	for _, s := range c.h.Starts {
		if s.Base == nil || s.Ready == 0 {
			continue
		}
		if e := c.byName[s.Epoch]; e != nil && (e.start != s || e.n == 0) {
			c.checkSnapshot(e, s.Base, "the server after "+s.Fault, e.acknowledged(s.Began))
		}
	}
}

func (c *checker) checkFinal() {
	if c.h.Final == nil {
		return
	}
	last := c.epochs[len(c.epochs)-1]
	at, ok := parseCursor(c.h.Final.Cursor)
	if !ok || at.epoch != last.name {
		c.violate("epoch", "the final rows are at %q, and the last start had the epoch %s", c.h.Final.Cursor, last.name)
		return
	}
	c.checkSnapshot(last, c.h.Final, "the server at the end", last.acknowledged(c.h.Final.Taken))
}

func (c *checker) checkSnapshot(e *epoch, s *Snapshot, who string, acknowledged uint64) {
	at, ok := parseCursor(s.Cursor)
	if !ok || at.epoch != e.name {
		c.violate("epoch", "%s has the cursor %q in the epoch %s", who, s.Cursor, e.name)
		return
	}
	if at.seq < acknowledged {
		c.violate("lost", "%s is at %s, and %d was acknowledged", who, at, acknowledged)
	}
	rows := make(map[string]map[string]Row)
	prints := make(map[string]uint64)
	for _, r := range s.Rows {
		if rows[r.Collection] == nil {
			rows[r.Collection] = make(map[string]Row)
		}
		rows[r.Collection][r.Key] = r
		prints[r.Collection] += fingerprint(rowKey{r.Collection, r.Key}, r.Seq, r.Value)
	}
	for collection := range rows {
		if e.lines[collection] == nil {
			c.compare(e, at.seq, s.Taken+overdue, collection, rows[collection], who, "lost")
		}
	}
	for _, collection := range e.collections() {
		// What was acknowledged counts, also where the server says that it is not so far.
		if prints[collection] != printAt(e.lines[collection], max(at.seq, acknowledged)) {
			c.compare(e, max(at.seq, acknowledged), s.Taken+overdue, collection, rows[collection], who, "lost")
		}
	}
	c.checkLate(e, at.seq, s.Taken, who, func(k rowKey) uint64 { return rows[k.collection][k.key].Seq })
}
