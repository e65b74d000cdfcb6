package follow

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
)

// Post sends one request to write, a JSON object as the protocol has it for POST
// changes, and returns the answer as a frame written: with the results, whether the
// server took the changes or refused them. Whatever answer has no results is a
// *Problem. Of Options it uses URL, Tenant, HTTP, Header and MaxLine. Any number of
// calls may run at once.
//
// Whoever writes much brings an HTTP client: one of its own is made and closed for
// each call.
func Post(ctx context.Context, o Options, request []byte) (Frame, error) {
	o, err := o.check()
	if err != nil {
		return Frame{}, err
	}
	client, done := o.client()
	defer done()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.URL+"/v1/"+o.Tenant+"/changes", bytes.NewReader(request))
	if err != nil {
		return Frame{}, err
	}
	if o.Header != nil {
		req.Header = o.Header.Clone()
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return Frame{}, fmt.Errorf("write: %w", plain(err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, int64(o.MaxLine)+1))
	if err != nil {
		return Frame{}, fmt.Errorf("read the answer to a write: %w", plain(err))
	}
	if len(body) > o.MaxLine {
		return Frame{}, fmt.Errorf("the answer to a write: %w", ErrTooLarge)
	}
	f := Frame{Type: "written", Raw: body}
	err = members(body, func(name string, v []byte) (err error) {
		switch name {
		case "cursor":
			f.Cursor, err = text(v)
		case "results":
			f.Results, err = results(v)
		}
		return err
	})
	switch ok := resp.StatusCode == http.StatusOK; {
	case err == nil && f.Results != nil && (ok || resp.StatusCode == http.StatusConflict):
		return f, nil
	case ok:
		return Frame{}, fmt.Errorf("the answer to a write can't be read: %.120q", body)
	default:
		return Frame{}, problemFrom(resp, body)
	}
}
