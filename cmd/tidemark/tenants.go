package main

import (
	"fmt"
	"strings"

	"github.com/alecthomas/units"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// Tenants is which tenants there are, and what each may have.
type Tenants struct {
	Only []string `name:"tenants" placeholder:"NAME" group:"Tenants" help:"All tenants that there are; may be repeated. Default: a tenant comes to be when somebody uses it."`

	TenantSessions      int               `default:"50000" placeholder:"N" group:"Tenants" help:"Feeds of a tenant that are open at a time. Default: ${default}."`
	TenantSubscriptions int               `default:"500000" placeholder:"N" group:"Tenants" help:"Collections that they follow, together. Default: ${default}."`
	TenantWrites        int               `default:"100000" placeholder:"N" group:"Tenants" help:"Changes a second of a tenant, with twice as many at once, and 500 at least. Default: ${default}."`
	TenantBytes         units.Base2Bytes  `default:"64MiB" placeholder:"SIZE" group:"Tenants" help:"Bytes of changes a second of a tenant, with twice as many at once, and 16MiB at least. Default: ${default}."`
	TenantRows          int64             `default:"10000000" placeholder:"N" group:"Tenants" help:"Rows of a tenant. Default: ${default}."`
	TenantSize          *units.Base2Bytes `placeholder:"SIZE" group:"Tenants" help:"What the rows, tombstones and remembered ids of a tenant may hold of memory. Default: as --memory."`
	TenantRowSize       units.Base2Bytes  `default:"1MiB" placeholder:"SIZE" group:"Tenants" help:"Bytes of one row's value. Default, and most: ${default}."`
	TenantLimit         []string          `sep:"none" placeholder:"NAME:LIMIT=N,…" group:"Tenants" help:"Limits of one tenant's own, like acme:writes=100,rows=50000,size=1GiB; may be repeated. The names are those of the flags above."`
}

// Validate is called by kong: a limit of 0 never means that there is none.
func (t *Tenants) Validate() error {
	for name, n := range map[string]int64{"tenant-sessions": int64(t.TenantSessions), "tenant-subscriptions": int64(t.TenantSubscriptions), "tenant-writes": int64(t.TenantWrites),
		"tenant-bytes": int64(t.TenantBytes), "tenant-rows": t.TenantRows, "tenant-row-size": int64(t.TenantRowSize)} {
		if n <= 0 {
			return fmt.Errorf("--%s must be above 0", name)
		}
	}
	if t.TenantSize != nil && *t.TenantSize <= 0 {
		return fmt.Errorf("--tenant-size must be above 0")
	}
	if t.TenantRowSize > hub.MaxValue {
		return fmt.Errorf("--tenant-row-size must be at most 1MiB")
	}
	for _, name := range t.Only {
		if err := feed.CheckTenant(name); err != nil {
			return fmt.Errorf("--tenants: %w", err)
		}
	}
	_, err := t.own()
	return err
}

func (t *Tenants) limits() hub.Limits {
	return hub.Limits{Sessions: t.TenantSessions, Subscriptions: t.TenantSubscriptions, Writes: t.TenantWrites, Bytes: int64(t.TenantBytes),
		Rows: t.TenantRows, Size: int64(valueOf(t.TenantSize)), RowBytes: int(t.TenantRowSize)}
}

// own reads the limits of single tenants.
func (t *Tenants) own() (map[string]hub.Limits, error) {
	all := make(map[string]hub.Limits)
	for _, text := range t.TenantLimit {
		name, list, ok := strings.Cut(text, ":")
		if err := feed.CheckTenant(name); err != nil || !ok {
			return nil, fmt.Errorf("--tenant-limit %q: it looks like acme:writes=100,rows=50000", text)
		}
		if _, twice := all[name]; twice {
			return nil, fmt.Errorf("--tenant-limit: tenant %s is there twice", name)
		}
		var l hub.Limits
		for part := range strings.SplitSeq(list, ",") {
			limit, value, _ := strings.Cut(part, "=")
			n, err := units.ParseBase2Bytes(value)
			if err != nil {
				n, err = units.ParseBase2Bytes(value + "B")
			}
			if err != nil || n <= 0 {
				return nil, fmt.Errorf("--tenant-limit %s: %q must be above 0, like writes=100 or size=1GiB", name, part)
			}
			switch limit {
			case "sessions":
				l.Sessions = int(n)
			case "subscriptions":
				l.Subscriptions = int(n)
			case "writes":
				l.Writes = int(n)
			case "bytes":
				l.Bytes = int64(n)
			case "rows":
				l.Rows = int64(n)
			case "size":
				l.Size = int64(n)
			case "row-size":
				l.RowBytes = int(min(n, hub.MaxValue))
			default:
				return nil, fmt.Errorf("--tenant-limit %s: %q is no limit: sessions, subscriptions, writes, bytes, rows, size or row-size", name, limit)
			}
		}
		all[name] = l
	}
	return all, nil
}
