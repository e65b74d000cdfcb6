package main_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/transport/follow"
)

// TestForgottenTenantLeavesNoByteOnDisk writes a word in every place that a tenant can write to,
// forgets the tenant, and looks for the word in every file: a deletion that somebody asked for by
// law, and that a disk keeps.
func TestForgottenTenantLeavesNoByteOnDisk(t *testing.T) {
	t.Run("without history", func(t *testing.T) { forgetOnDisk(t) })
	t.Run("with history", func(t *testing.T) { forgetOnDisk(t, "--history", "forever") })
}

func forgetOnDisk(t *testing.T, flags ...string) {
	const canary = "CANARYc4n4ry"
	data, addr, admin := t.TempDir(), freePort(t), freePort(t)
	flags = append(flags, "--admin-listen", admin, "--log-size", "16KiB") // some of it is in checkpoints by then
	p := serve(t, addr, data, flags...)
	base := "http://" + addr + "/v1/"
	for i := range 300 {
		for _, tenant := range []string{canary, "other"} {
			word := canary
			if tenant == "other" {
				word = "bystander"
			}
			body := fmt.Sprintf(`{"client":"%[1]s-client","changes":[{"id":"%[1]s-%[2]d","op":"put","collection":"%[1]s-collection/x","key":"%[1]s-%[3]d","value":{"v":"%[1]s"}}]}`, word, i, i%40)
			if status, answer, _ := call(t, "POST", base+tenant+"/changes", body, ""); status != 200 {
				t.Fatalf("%d %s", status, answer)
			}
		}
	}
	if len(found(t, data, canary)) == 0 {
		t.Fatal("the word is not even there before")
	}
	other, err := follow.Dial(t.Context(), follow.Options{URL: "http://" + addr, Tenant: "other", Transport: follow.SSE, Collections: []follow.Collection{{Name: "bystander-collection/x"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	next := func() string {
		t.Helper()
		f, err := other.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return f.Type
	}
	for next() != "live" {
	}

	if status, answer, _ := call(t, http.MethodDelete, base+canary, "", ""); status != 403 {
		t.Errorf("who is no administrator: %d %s", status, answer)
	}
	status, answer, _ := call(t, http.MethodDelete, "http://"+admin+"/v1/"+canary, "", "")
	if status != 200 || !strings.Contains(answer, `"rows":40`) {
		t.Fatalf("%d %s", status, answer)
	}
	if left := found(t, data, canary); len(left) > 0 {
		t.Errorf("it is still in %v", left)
	}
	// Others go on, without a gap, before and after a crash.
	put := func(n int) {
		t.Helper()
		if status, answer, _ := call(t, "PUT", base+"other/rows/bystander-collection/x?key=after", fmt.Sprintf(`{"n":%d}`, n), ""); status != 200 {
			t.Fatalf("%d %s", status, answer)
		}
	}
	put(1)
	for kind := next(); kind != "change"; kind = next() {
		if kind == "reset" || kind == "end" {
			t.Fatalf("another tenant's feed is told %s", kind)
		}
	}
	p.kill()
	p = serve(t, addr, data, flags...)
	put(2)
	for tenant, want := range map[string]int{canary: 0, "other": 41} {
		word := map[bool]string{true: canary, false: "bystander"}[tenant == canary]
		_, answer, _ := call(t, "GET", base+tenant+"/rows/"+word+"-collection/x?limit=1000", "", "")
		if n := strings.Count(answer, `"key"`); n != want {
			t.Errorf("%s has %d rows, not %d", tenant, n, want)
		}
	}
	if len(flags) > 4 { // what others wrote is in the history, and nothing else
		for tenant, want := range map[string]int{canary: 0, "other": 302} {
			_, answer, _ := call(t, "GET", base+tenant+"/history?limit=1000", "", "")
			if n := strings.Count(answer, `"seq"`); n != want {
				t.Errorf("%d changes of %s are in the history, not %d", n, tenant, want)
			}
		}
	}
	if p.stop(t) != 0 {
		t.Errorf("%s", p.out)
	}
	if out, errs, code := command(t, "verify", "--data", data); code != 0 {
		t.Errorf("verify: %s%s", out, errs)
	}
	if left := found(t, data, canary); len(left) > 0 {
		t.Errorf("after a restart it is in %v", left)
	}
	if strings.Contains(p.out.String(), canary) {
		t.Errorf("it is in the log:\n%s", p.out)
	}
}

// TestAHistoryOfManySegmentsForgetsOneTenantAlone: what is said of another's is the same to the byte,
// after a crash too, and by a server that keeps the history on no more.
func TestAHistoryOfManySegmentsForgetsOneTenantAlone(t *testing.T) {
	const canary, second = "CANARYc4n4ry", "SECONDs3c0nd"
	data, addr, admin := t.TempDir(), freePort(t), freePort(t)
	flags := []string{"--admin-listen", admin, "--log-size", "16KiB"}
	kept := append([]string{"--history", "1MiB"}, flags...) // in segments of 128 KiB
	p := serve(t, addr, data, kept...)
	write := func(n int) {
		t.Helper()
		for i := range n {
			for _, tenant := range []string{canary, "other", second} {
				body := fmt.Sprintf(`{"client":"%[1]s-client","changes":[{"id":"%[1]s-%[2]d","op":"put","collection":"%[1]s-collection/x","key":"%[1]s-%[3]d","value":{"v":"%[4]s"}}]}`, tenant, i, i%9, strings.Repeat(tenant, 200))
				if status, answer, _ := call(t, "POST", "http://"+addr+"/v1/"+tenant+"/changes", body, ""); status != 200 {
					t.Fatalf("%d %s", status, answer)
				}
			}
		}
	}
	historyOf := func(tenant string) string {
		t.Helper()
		status, answer, _ := call(t, "GET", "http://"+addr+"/v1/"+tenant+"/history?limit=10000", "", "")
		if status != 200 {
			t.Fatalf("%d %s", status, answer)
		}
		return answer
	}
	forget := func(tenant string) {
		t.Helper()
		if status, answer, _ := call(t, http.MethodDelete, "http://"+admin+"/v1/"+tenant, "", ""); status != 200 {
			t.Fatalf("%d %s", status, answer)
		}
		if left := found(t, data, tenant); len(left) > 0 {
			t.Errorf("%s is still in %v", tenant, left)
		}
	}
	write(100)
	if in := found(t, filepath.Join(data, "history"), canary); len(in) < 3 {
		t.Fatalf("the history has it in %v", in)
	}
	before, old := historyOf("other"), historyOf(canary)
	if strings.Count(before, `"seq"`) != 100 || strings.Count(old, `"seq"`) != 100 {
		t.Fatalf("%.300s\n%.300s", before, old)
	}
	forget(canary)
	if again := historyOf(canary); strings.Contains(again, `"seq"`) {
		t.Errorf("it is answered %.300s", again)
	}
	same := func() {
		t.Helper()
		if now := historyOf("other"); now != before {
			t.Errorf("another tenant's was %.300s\nand is %.300s", before, now)
		}
	}
	same()
	p.kill()
	p = serve(t, addr, data, kept...)
	same()
	p.kill()
	p = serve(t, addr, data, flags...) // it is there, and nothing is added to it
	if in := found(t, filepath.Join(data, "history"), second); len(in) < 3 {
		t.Fatalf("the history has the second in %v", in)
	}
	forget(second)
	p.kill()
	p = serve(t, addr, data, kept...)
	now := historyOf("other")
	holes := strings.Index(now, `,"holes"`) // what was written meanwhile
	if holes < 0 {
		holes = strings.Index(now, `,"begins"`)
	}
	if holes < 0 || !strings.HasPrefix(before, now[:holes]) {
		t.Errorf("another tenant's was %.300s\nand is %.300s", before, now)
	}
	if p.stop(t) != 0 {
		t.Errorf("%s", p.out)
	}
	if out, errs, code := command(t, "verify", "--data", data); code != 0 {
		t.Errorf("verify: %s%s", out, errs)
	}
	for _, tenant := range []string{canary, second} {
		if left := found(t, data, tenant); len(left) > 0 || strings.Contains(p.out.String(), tenant) {
			t.Errorf("in the end %s is in %v, or in the log:\n%s", tenant, left, p.out)
		}
	}
}

// found is the files that hold a word, in their content or their name.
func found(t testing.TB, dir, word string) (in []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(word)) || strings.Contains(path, word) {
			in = append(in, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// TestLimitsOfTenantsAreToldByFlags: a flag that is read and does nothing.
func TestLimitsOfTenantsAreToldByFlags(t *testing.T) {
	addr := freePort(t)
	serve(t, addr, t.TempDir(), "--admin-listen", "off", "--tenants", "acme,small", "--tenant-limit", "small:writes=1,rows=2,row-size=50", "--tenant-row-size", "1KiB")
	put := func(tenant, key, value string) (int, string, http.Header) {
		return call(t, "PUT", "http://"+addr+"/v1/"+tenant+"/rows/todos?key="+key, value, "")
	}
	for _, c := range []struct {
		tenant, key, value string
		status             int
	}{
		{"acme", "1", `{}`, 200}, {"other", "1", `{}`, 403}, {"small", "1", `{}`, 200}, {"small", "2", `{}`, 200}, {"small", "3", `{}`, 429},
		{"small", "1", `{"v":"` + strings.Repeat("v", 60) + `"}`, 413}, {"acme", "1", `{"v":"` + strings.Repeat("v", 900) + `"}`, 200}, {"acme", "1", `{"v":"` + strings.Repeat("v", 1100) + `"}`, 413},
	} {
		status, answer, h := put(c.tenant, c.key, c.value)
		if status != c.status || status == 429 && (h.Get("Retry-After") == "" || !strings.Contains(answer, "too-many")) {
			t.Errorf("%s %s: %d %s %v, want %d", c.tenant, c.key, status, answer, h, c.status)
		}
	}
	for _, limit := range []string{"small", "small:", "small:writes=0", "small:writes=-1", "small:wirtes=1", "a/b:writes=1", "small:writes"} {
		if _, _, code := command(t, "serve", "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--tenant-limit", limit); code == 0 {
			t.Errorf("%q passes", limit)
		}
	}
}
