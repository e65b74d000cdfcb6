package transport

import "sync/atomic"

// turn is held by one at a time, like a sync.Mutex. Who waits for it waits on a channel, made for that alone:
// with a mutex no test could let time go by while somebody waits for a slow peer (testing/synctest),
// and a channel for each connection, used for each delivery, costs a cache miss more each time.
// The zero value is free. Whoever gives it back need not be who took it.
type turn struct {
	taken atomic.Bool
	freed atomic.Pointer[chan struct{}] // closed when it is given back; nil: nobody waits
}

func (t *turn) try() bool { return t.taken.CompareAndSwap(false, true) }

func (t *turn) take() {
	for !t.try() {
		c := make(chan struct{})
		if !t.freed.CompareAndSwap(nil, &c) {
			at := t.freed.Load()
			if at == nil {
				continue // it was given back
			}
			c = *at
		}
		if t.try() { // given back before anybody could see who waits
			return
		}
		<-c
	}
}

func (t *turn) give() {
	t.taken.Store(false)
	if c := t.freed.Swap(nil); c != nil {
		close(*c)
	}
}
