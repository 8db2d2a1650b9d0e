package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dtesn-agent/schema"
)

// halves writes the files of a site in parts, no two of them more than settle
// apart, and notes each state that was whole.
type halves struct {
	*site
	random *rand.Rand
	settle time.Duration
	texts  map[string]string
	n      int
	// slow counts the writes whose parts this machine put further apart, so
	// that what lay between was a state.
	slow, parts int
}

var halfFiles = []string{"production.yaml", "base.yaml", "templates/wide.yaml"}

// TestWritersHalves writes in two to four parts, cut anywhere, with pauses
// below settle between them, in all the ways in which files are written in
// place; at times the environment's file is renamed over meanwhile, or the
// agent is asked to read now. No state is recorded but those that were whole.
func TestWritersHalves(t *testing.T) {
	t.Parallel()
	var all sync.WaitGroup
	defer all.Wait()
	for _, c := range []struct {
		mode   string
		before []string
		flags  []string
	}{
		{"inotify", nil, nil},
		{"inotify and polls", nil, []string{"--resync", "100ms"}},
		{"poll", limited("instances", 0), []string{"--resync", "100ms"}},
	} {
		atOnce(&all, t, c.mode, func(t *testing.T) {
			h := newHalves(t)
			if c.mode == "poll" {
				needsUserNamespaces(t)
			}
			h.launch(c.before, append(c.flags, "--settle", h.settle.String())...)
			h.awaitState(h.now())
			h.mode(strings.Fields(c.mode)[0])
			writes := 16
			if testing.Short() {
				writes = 6
			}
			for i := range writes {
				h.write()
				if i%4 == 0 {
					h.awaitState(h.now())
				} else {
					h.pause(h.upTo(3 * h.settle))
				}
			}
			h.awaitState(h.now())
			h.onlyWhole(writes / 4)
			if h.slow > h.parts/2 {
				t.Skipf("%d of %d parts came too late: this machine has too much to do to tell anything", h.slow, h.parts)
			}
			t.Logf("%d parts of %d writes, %d too late, %d records, the slowest arrived after %s", h.parts, writes, h.slow, len(h.records()), h.worst)
		})
	}
}

func newHalves(t *testing.T) *halves {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	h := &halves{site: newSite(t), random: rand.New(rand.NewPCG(seed, 0)), settle: 140 * time.Millisecond, texts: map[string]string{}}
	for _, file := range halfFiles {
		h.put(file, h.next(file))
	}
	h.whole[h.now().Digest()] = true
	return h
}

// next is another text of a file. Of the six parameters the template and the
// environment set four each, so that of each line of each file something
// depends, and something lies below that comes through if it is missing.
func (h *halves) next(file string) string {
	h.n++
	p := numbered(h.n)
	lines := strings.SplitAfter(text(p, 2000*h.random.IntN(3)), "\n")
	omit := map[string][]string{
		"templates/wide.yaml": {"bseries_max_order", "max_membrane_depth"},
		"production.yaml":     {ttlName, "enable_performance_monitoring"},
	}[file]
	var b strings.Builder
	for _, line := range lines {
		if name, _, _ := strings.Cut(strings.TrimSpace(line), ":"); !slices.Contains(omit, name) && (file == "production.yaml" || name != "environment") {
			b.WriteString(line)
		}
		if file == "production.yaml" && strings.HasPrefix(line, "environment:") {
			b.WriteString("extends: [wide]\n")
		}
	}
	h.texts[file] = b.String()
	return b.String()
}

// now is what the whole texts declare.
func (h *halves) now() schema.Parameters {
	h.t.Helper()
	in := schema.Input{Instance: "any"}
	for file, text := range h.texts {
		in.Files = append(in.Files, schema.File{Path: file, Bytes: []byte(text)})
	}
	c, v := production.Load(in)
	if v != nil {
		h.t.Fatalf("the whole texts are not valid: %+v", v)
	}
	return c.Parameters
}

func (h *halves) upTo(d time.Duration) time.Duration { return time.Duration(h.random.Int64N(int64(d))) }

func (h *halves) pause(d time.Duration) { <-time.After(d) }

// write writes one file in parts.
func (h *halves) write() {
	h.t.Helper()
	file := halfFiles[h.random.IntN(len(halfFiles))]
	path := filepath.Join(h.root, file)
	old, text := h.texts[file], h.next(file)
	flags := []int{os.O_TRUNC, 0, os.O_CREATE | os.O_EXCL}[h.random.IntN(3)]
	if flags&os.O_EXCL != 0 {
		ok(h.t, os.Remove(path))
	}
	f, err := os.OpenFile(path, os.O_WRONLY|flags, 0o644)
	ok(h.t, err)
	defer func() { ok(h.t, f.Close()) }()

	var last time.Time
	step := func(do func() error) {
		between, valid := h.onDisk()
		begin := time.Now()
		ok(h.t, do())
		// What was there for longer than settle was a state.
		if h.parts++; !last.IsZero() && time.Since(last) > h.settle {
			h.slow++
			if valid {
				h.whole[between.Digest()] = true
			}
		}
		last = begin
	}
	for _, part := range h.cut(text) {
		step(func() error { _, err := f.WriteString(part); return err })
		if file != "production.yaml" && h.random.IntN(4) == 0 {
			h.rename("production.yaml", h.next("production.yaml"))
			h.stillWhole(file, old, text)
		}
		if h.random.IntN(2) == 0 {
			h.pause(h.upTo(h.settle * 2 / 10))
			h.readNow() // asking does not hurry it
		}
		h.pause(h.upTo(h.settle * 6 / 10))
	}
	h.whole[h.now().Digest()] = true
	step(func() error { return f.Truncate(int64(len(text))) })
}

// stillWhole notes the state of now if what was written of a file so far are
// the bytes that were there before.
func (h *halves) stillWhole(file, old, text string) {
	h.t.Helper()
	if got, err := os.ReadFile(filepath.Join(h.root, file)); err == nil && string(got) == old {
		h.texts[file] = old
		h.whole[h.now().Digest()] = true
		h.texts[file] = text
	}
}

// cut cuts a text anywhere, or between lines, into two to four parts.
func (h *halves) cut(text string) (parts []string) {
	for range 1 + h.random.IntN(3) {
		at := h.random.IntN(len(text) + 1)
		if h.random.IntN(2) == 0 {
			at = strings.LastIndex(text[:at], "\n") + 1
		}
		parts, text = append(parts, text[:at]), text[at:]
	}
	return slices.DeleteFunc(append(parts, text), func(part string) bool { return part == "" })
}

// An agent that starts while a file is being written waits as well.
func TestWritersHalfAtStart(t *testing.T) {
	t.Parallel()
	const settle = 2500 * time.Millisecond
	s := newSite(t)
	whole := s.declare(1)
	delete(s.whole, numbered(0).Digest())
	half := whole[:strings.Index(whole, "  esn_reservoir_size")]
	begin := time.Now()
	s.put("production.yaml", half)
	s.launch(nil, "--settle", settle.String())
	s.until("the agent has read", arrival, func(now *siteStatus) bool { return now.Source.Mode == "inotify" })
	s.put("production.yaml", whole)
	if took := time.Since(begin); took > settle {
		t.Skipf("the agent needed %s to start", took)
	}
	s.await(1)
	s.onlyWhole(1)
}

// TestWritersTwoFiles edits base.yaml and production.yaml one after the other:
// within settle they are one change, further apart each is a state.
func TestWritersTwoFiles(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	base := func(depth int) string {
		return strings.Replace(baseText, "enable_caching: true", fmt.Sprintf("enable_caching: %v", depth%2 == 0), 1)
	}
	env := func(n int) string {
		return fmt.Sprintf("environment: production\nparameters:\n  cache_ttl_seconds: %d\n", 10000+n)
	}
	state := func(b, e int) schema.Parameters {
		return baseState.With(ttlName, schema.Int(10000+e)).With("enable_caching", schema.Bool(b%2 == 0))
	}
	s.put("base.yaml", base(0))
	s.put("production.yaml", env(0))
	const settle = 250 * time.Millisecond
	s.launch(nil, "--settle", settle.String())
	want := []schema.Parameters{state(0, 0)}
	s.awaitState(state(0, 0))
	for n := 1; n <= 4; n++ {
		first, second := "base.yaml", "production.yaml"
		texts := map[string]string{first: base(n), second: env(n)}
		between := state(n, n-1)
		if n%2 == 0 {
			first, second = second, first
			between = state(n-1, n)
		}
		together := n <= 2
		begin := time.Now()
		s.put(first, texts[first])
		if together {
			<-time.After(settle / 4)
		} else {
			want = append(want, between)
			s.awaitState(between)
		}
		s.put(second, texts[second])
		if took := time.Since(begin); together && took > settle {
			t.Skipf("this machine needed %s for two small files", took)
		}
		want = append(want, state(n, n))
		s.awaitState(state(n, n))
	}
	if got := s.records(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("records %+v\nwant    %+v", got, want)
	}
}
