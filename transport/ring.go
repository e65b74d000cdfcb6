package transport

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/tidemark-sync/tidemark/transport/uring"
)

// rings are those of the process. They are never closed.
var rings struct {
	try  sync.Once
	free chan *uring.Ring // nil: there is none
	made atomic.Int32
}

// takeRing takes a ring that nobody else uses, nil where there is none.
func takeRing() *uring.Ring {
	rings.try.Do(func() {
		if r, err := uring.New(mostSends); err == nil {
			rings.free = make(chan *uring.Ring, runtime.GOMAXPROCS(0))
			rings.made.Add(1)
			rings.free <- r
		}
	})
	select {
	case r := <-rings.free:
		return r
	default:
	}
	if rings.free == nil || int(rings.made.Add(1)) > cap(rings.free) {
		rings.made.Add(-1)
		return nil
	}
	r, err := uring.New(mostSends)
	if err != nil {
		rings.made.Add(-1)
		return nil
	}
	return r
}

// putRing gives one back, closed if it is broken.
func putRing(r *uring.Ring, broken bool) {
	if broken {
		r.Close()
		rings.made.Add(-1)
		return
	}
	rings.free <- r
}
