package test

import (
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"dtesn-agent/apply"
)

// A browser is a real Chromium, with what it requested and complained about.
type browser struct {
	*testing.T
	ctx context.Context

	mu        sync.Mutex
	requested []string
	complaint []string
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	needs(t, "chromium")
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("chromium"), chromedp.NoSandbox, chromedp.Flag("disable-lcd-text", true))
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	b := &browser{T: t}
	b.ctx, cancel = chromedp.NewContext(ctx, chromedp.WithListener(b.note))
	t.Cleanup(cancel)
	ok(t, chromedp.Do(b.ctx)) // the browser lives as long as the context of the first steps
	b.do(func(ctx context.Context) error {
		_, err := chromedp.Call(ctx, log.Enable, cdp.Empty{})
		if err == nil {
			_, err = chromedp.Call(ctx, network.Enable, network.EnableParams{})
		}
		return err
	})
	return b
}

func (b *browser) note(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		b.requested = append(b.requested, e.Request.URL)
	case *log.EventEntryAdded:
		b.complaint = append(b.complaint, e.Entry.Text)
	case *runtime.EventExceptionThrown:
		b.complaint = append(b.complaint, e.ExceptionDetails.Text)
	}
}

func (b *browser) do(do func(ctx context.Context) error) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	if err := do(ctx); err != nil {
		b.Fatal(err)
	}
}

func (b *browser) steps(steps ...chromedp.Action[chromedp.Void]) {
	b.Helper()
	b.do(func(ctx context.Context) error { return chromedp.Do(ctx, steps...) })
}

// is evaluates an expression in the page.
func is[T any](b *browser, expression string) (v T) {
	b.Helper()
	b.do(func(ctx context.Context) (err error) {
		v, err = chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise, chromedp.EvalAsValue))
		return err
	})
	return v
}

// media emulates a feature of the reader's screen.
func (b *browser) media(name, value string) {
	b.Helper()
	b.do(func(ctx context.Context) error {
		_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: name, Value: value}}})
		return err
	})
}

// accessible runs axe-core on the page.
func (b *browser) accessible(axe string) {
	b.Helper()
	found := is[string](b, axe+`;axe.run().then(r => JSON.stringify(r.violations.map(v => v.id + ": " + v.help + ": " + v.nodes.map(n => n.html + " " + n.failureSummary).join("; "))))`)
	if found != "[]" {
		b.Errorf("axe finds: %s", found)
	}
}

// pageRig is an agent with something of everything to show.
func pageRig(t *testing.T) *rig {
	t.Helper()
	r := newBareRig(t)
	r.declare(700)
	r.embedded(func(cmd *exec.Cmd) {
		cmd.Args = append(cmd.Args, "--source-url", "https://git.example.com/{commit}/{file}#L{line}")
	})
	r.await("applied", func(v view) bool { return v.State == apply.StateInSync })
	for _, size := range []int{750, 800} {
		r.declare(size)
		r.await("applied", func(v view) bool { return v.InSync && v.size() == size })
	}
	r.order("rollback", "--reason", "800 is <slow> & \"bad\"")
	r.await("held", func(v view) bool { return v.State == apply.StateHeld && v.Running.RollbackSnapshot != "" })
	return r
}

func get(t *testing.T, url, accept string) (http.Header, string) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	ok(t, err)
	q.Header.Set("Accept", accept)
	resp, err := http.DefaultClient.Do(q)
	ok(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	ok(t, err)
	return resp.Header, string(text)
}

// TestPage holds that the page tells everything without a script, follows what happens
// with one, asks for nothing else, and can be read by everybody.
func TestPage(t *testing.T) {
	t.Parallel()
	r := pageRig(t)
	address := "http://127.0.0.1:" + r.port + "/"
	header, text := get(t, address, "text/html,*/*;q=0.8")
	for _, want := range []string{
		">held</span>", "800 is &lt;slow&gt; &amp; &#34;bad&#34;", "agent resume " + sizeName + " --state", "agent rollback --reason TEXT", "production.yaml:", "base.yaml:",
		"rolled back to 750", "<table>", "Values over time", "snapshot_",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if len(text) > 60<<10 || strings.Contains(text, "<slow>") || strings.Contains(header.Get("Content-Security-Policy"), "unsafe") {
		t.Errorf("%d bytes, policy %s", len(text), header.Get("Content-Security-Policy"))
	}
	if _, plain := get(t, address, "*/*"); !strings.HasPrefix(plain, "state      held\n") {
		t.Errorf("curl gets %.200s", plain)
	}

	ok(t, exec.Command("./axe").Run())
	scripts, err := filepath.Glob("../.cache/axe-*.js")
	ok(t, err)
	axe, err := os.ReadFile(scripts[0])
	ok(t, err)
	b := newBrowser(t)
	b.steps(chromedp.Navigate(address))
	r.until("the page is live", func() bool { return is[string](b, `document.getElementById("live").textContent`) == ", live" })
	is[bool](b, `document.querySelector("summary").click(), true`)
	for _, scheme := range []string{"light", "dark"} {
		b.media("prefers-color-scheme", scheme)
		b.accessible(string(axe))
	}
	for _, width := range []int64{360, 1280, 3840} {
		b.steps(chromedp.EmulateViewport(width, 900))
		if wide := is[int64](b, `document.documentElement.scrollWidth`); wide > width {
			t.Errorf("at %d pixels the page is %v wide", width, wide)
		}
	}
	is[bool](b, `document.querySelector("h1").marked = true`)
	r.order("resume")
	r.declare(900)
	r.until("the page shows the change", func() bool {
		return strings.HasPrefix(is[string](b, `document.title`), "in_sync: production ") &&
			strings.Contains(is[string](b, `document.querySelector("main").innerText`), "-> 900")
	})
	if !is[bool](b, `document.querySelector("h1").marked === true && document.querySelector("details").open`) {
		t.Error("it was built anew: what a reader had opened is closed")
	}
	r.write("production.yaml", "environment: production\nparameters:\n  "+sizeName+": many\n")
	r.until("the line is marked", func() bool {
		return strings.Contains(is[string](b, `(document.querySelector("mark") || document.body).innerText`), sizeName+": many")
	})
	b.accessible(string(axe))
	is[bool](b, `document.querySelectorAll("input[name=from]")[2].click(), document.querySelector("form").requestSubmit(), true`)
	r.until("the comparison is there", func() bool { return is[bool](b, `document.querySelector("#diff + table") != null`) })
	if diff := is[string](b, `document.querySelector("#diff + table").innerText`); !strings.Contains(diff, sizeName) {
		t.Errorf("the comparison is %s", diff)
	}
	b.accessible(string(axe))

	b.mu.Lock()
	defer b.mu.Unlock()
	slices.Sort(b.requested)
	for _, url := range slices.Compact(b.requested) {
		if rest, found := strings.CutPrefix(url, address); !found || rest != "" && !strings.HasPrefix(rest, "live") && !strings.HasPrefix(rest, "?to=") {
			t.Errorf("the page requested %s", url)
		}
	}
	if len(b.complaint) > 0 {
		t.Errorf("the browser complains: %q", b.complaint)
	}
}

// TestPageWithoutScript holds that nothing is hidden where scripts do not run, and that
// the report is such a page in one file.
func TestPageWithoutScript(t *testing.T) {
	t.Parallel()
	r := pageRig(t)
	file := filepath.Join(r.dir, "report.html")
	if code, out := agent("report", "--state", r.state, "--html", file); code != 0 {
		t.Fatal(out)
	}
	text, err := os.ReadFile(file)
	ok(t, err)
	if strings.Contains(string(text), "<script") || !strings.Contains(string(text), ">held</span>") {
		t.Errorf("the report: %.300s", text)
	}
	b := newBrowser(t)
	b.steps(chromedp.Navigate("file://" + file))
	shown := is[string](b, `document.querySelector("main").innerText`)
	var pdf []byte
	b.do(func(ctx context.Context) (err error) {
		pdf, err = chromedp.Run(ctx, chromedp.PrintToPDF())
		return err
	})
	if !strings.Contains(shown, "Values over time") || len(pdf) < 1000 {
		t.Errorf("it shows %s, and prints %d bytes", shown, len(pdf))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.requested) != 1 || len(b.complaint) > 0 {
		t.Errorf("the report requested %q, the browser complains %q", b.requested, b.complaint)
	}
}
