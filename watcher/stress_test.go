package watcher

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// In-place writes in two parts, renames and reads run against each other.
// Whatever is delivered, no file of it may be half of a write whose parts were
// at most Settle apart.
func TestNothingTornIsEverDelivered(t *testing.T) {
	t.Parallel()
	const settle = 60 * time.Millisecond
	root := config(t)
	put(t, root, "base.yaml", "0 begin\n0 end\n")
	f, sink := start(t, FilesOptions{Root: root, Settle: settle, Resync: 15 * time.Millisecond})
	sink.next(t)
	slow := map[string]bool{} // half texts that did lie there for longer than Settle
	delivered := 0
	check := func(got said) {
		if got.err != nil {
			return // changing without a pause, as it does here
		}
		delivered++
		base, _ := got.doc.File("base.yaml")
		var a, b int
		if n, err := fmt.Sscanf(string(base), "%d begin\n%d end\n", &a, &b); (n != 2 || err != nil || a != b) && !slow[string(base)] {
			t.Fatalf("delivered half of a write: %q", base)
		}
	}
	end := time.After(3 * time.Second)
	for i := 1; ; i++ {
		half := fmt.Sprintf("%d begin\n", i)
		begin := time.Now()
		file, err := os.OpenFile(filepath.Join(root, "base.yaml"), os.O_WRONLY|os.O_TRUNC, 0)
		must(t, err)
		_, err = file.WriteString(half)
		must(t, err)
		if i%2 == 0 {
			rename(t, root, "production.yaml", fmt.Sprintf("env %d\n", i))
		}
		if i%3 == 0 {
			f.Sync()
		}
		held := []said{}
		gap := time.After(rand.N(settle * 2 / 3))
		for waiting := true; waiting; {
			select {
			case got := <-sink:
				held = append(held, got)
			case <-gap:
				waiting = false
			}
		}
		_, err = file.WriteString(fmt.Sprintf("%d end\n", i))
		must(t, err)
		must(t, file.Close())
		if time.Since(begin) > settle {
			slow[half], slow[""] = true, true
		}
		for _, got := range held {
			check(got)
		}
		select {
		case got := <-sink:
			check(got)
		case <-time.After(rand.N(2 * settle)):
		case <-end:
			if delivered == 0 {
				t.Error("nothing was delivered")
			}
			t.Logf("%d writes, %d Documents", i, delivered)
			return
		}
	}
}

// From before the rename until the sink has the Document.
func BenchmarkRenameToDelivered(b *testing.B) {
	root := config(b)
	_, sink := start(b, FilesOptions{Root: root})
	sink.next(b)
	put(b, root, "templates/.keep", "")
	from, to := filepath.Join(root, ".new"), filepath.Join(root, "production.yaml")
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		text := fmt.Sprintf("environment: production\ndescription: number %d\n", i)
		put(b, root, ".new", text)
		b.StartTimer()
		begin := time.Now()
		must(b, os.Rename(from, to))
		got := sink.document(b, "production.yaml", text)
		took = append(took, got.at.Sub(begin))
	}
	reportQuantiles(b, took)
}

// The same way without reading: what inotify itself takes.
func BenchmarkFloorRenameToEvent(b *testing.B) {
	root := config(b)
	w, err := newWatch(statFiles(root, []string{"base.yaml", "production.yaml"}), "production.yaml")
	must(b, err)
	defer w.close()
	from, to := filepath.Join(root, ".new"), filepath.Join(root, "production.yaml")
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		put(b, root, ".new", "x")
		for drained := false; !drained; {
			select {
			case <-w.wake:
				w.happened()
			case <-time.After(2 * time.Millisecond):
				drained = true
			}
		}
		b.StartTimer()
		begin := time.Now()
		must(b, os.Rename(from, to))
		for renamed := false; !renamed; renamed = w.happened().renamed {
			<-w.wake
		}
		took = append(took, time.Since(begin))
	}
	reportQuantiles(b, took)
}
