package transport

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/tidemark-sync/tidemark/sync/feed"
	"github.com/tidemark-sync/tidemark/sync/hub"
)

// tagOf is the strong tag of a row.
func tagOf(seq feed.Seq) string { return `"` + strconv.FormatUint(uint64(seq), 10) + `"` }

// unchanged tells whether the client has what bears the tag: by weak comparison (RFC
// 9110, 13.1.2), since a hop that compresses weakens tags. Our tags have no commas.
func unchanged(r *http.Request, tag string) bool {
	for _, v := range r.Header["If-None-Match"] {
		for t := range strings.SplitSeq(v, ",") {
			if t = strings.TrimSpace(t); t == "*" || strings.TrimPrefix(t, "W/") == strings.TrimPrefix(tag, "W/") {
				return true
			}
		}
	}
	return false
}

// conditions reads If-Match and If-None-Match of a write.
func conditions(r *http.Request, w *hub.Write) (conditional bool, err error) {
	match, none := strings.Join(r.Header["If-Match"], ","), strings.Join(r.Header["If-None-Match"], ",")
	must, mustNot := r.Header["If-Match"] != nil, r.Header["If-None-Match"] != nil // also where it is empty: somebody's ETag was
	switch {
	case must && mustNot:
		return false, newProblem(hub.BadRequest, "either If-Match or If-None-Match, not both")
	case mustNot:
		if none != "*" {
			return false, newProblem(hub.BadRequest, "If-None-Match can be * only: the row must not be there")
		}
		w.If = new(feed.Seq)
	case match == "*":
		w.IfExists = true
	case must:
		strong, weak := strings.CutPrefix(match, "W/")
		seq, perr := parseTag(strong)
		if perr != nil {
			return false, newProblem(hub.BadRequest, `If-Match must be one ETag, like "1040", or *`)
		}
		if seq == 0 || weak { // If-Match compares strongly (RFC 9110, 13.1.1)
			seq = ^feed.Seq(0) // no row has this tag, whereas "if": 0 means that there is no row
		}
		w.If = &seq
	default:
		return false, nil
	}
	return true, nil
}

func parseTag(tag string) (feed.Seq, error) {
	digits, ok := strings.CutPrefix(tag, `"`)
	digits, ok2 := strings.CutSuffix(digits, `"`)
	n, err := strconv.ParseUint(digits, 10, 53)
	if !ok || !ok2 || err != nil {
		return 0, errors.New("not a tag")
	}
	return feed.Seq(n), nil
}
