package powercut

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
)

// look holds what the start found against what was said before the cut.
func (p *power) look(st *apply.Status, mode string) {
	p.t.Helper()
	repo := filepath.Join(p.state(), "snapshots.git")
	gaveUp := p.repairs()
	for _, lost := range p.lost() {
		p.t.Error(lost)
	}
	// What a rollback holds may be declared anew just behind it; a pause stays.
	if p.told == "pause" && (st.Held == nil || !st.Held.Paused) {
		p.t.Errorf("the pause was answered to be done, and after the cut the agent holds %+v", st.Held)
	}
	// The candidate was pending for a while: either all of it is there, or a torn
	// head was found and said.
	if _, there := p.records()[p.candidate]; mode == "pending" && !gaveUp && !there {
		p.t.Errorf("the candidate %s is gone, and nothing was said of it", p.candidate)
	}
	if intOf(*st.Current, sizeName) == 16384 {
		p.t.Error("a rejected state runs")
	}
	var faults []byte
	var fsck error
	p.until("git fsck is clean, or packing has left it alone", func() bool {
		faults, fsck = exec.Command("git", "--git-dir", repo, "fsck", "--strict", "--full").CombinedOutput()
		// a fsck that runs beside a packing misses the loose files that it listed
		return fsck == nil || !bytes.Contains(faults, []byte("No such file"))
	})
	if fsck != nil {
		p.t.Errorf("git fsck: %v\n%s", fsck, faults)
	}
	refs := map[string]string{}
	for _, ref := range []string{"refs/heads/production", "refs/dtesn/applied/production"} {
		out, err := exec.Command("git", "--git-dir", repo, "rev-parse", ref).CombinedOutput()
		if err != nil {
			p.t.Errorf("git rev-parse %s: %v %s", ref, err, out)
		}
		refs[string(out)] = ref
	}
	if len(refs) != 1 {
		p.t.Errorf("settled as %s, and head and applied are apart: %v", st.State, refs)
	}
	packs, _ := filepath.Glob(filepath.Join(repo, "objects", "pack", "*.pack"))
	count(&p.tally.packs, strconv.Itoa(len(packs)), 1)
	if p.t.Failed() {
		p.t.Fatalf("behind %s, cuts so far %s, seed %d\n%s", mode, counts(p.tally.cuts), *seed, p.said.tail())
	}
}

// lost holds the history against what was called applied, and says what is not
// there.
func (p *power) lost() (lost []string) {
	p.t.Helper()
	all, told := p.records(), p.said.told()
	for id, ttl := range told {
		r, there := all[id]
		switch {
		case !there || r.Outcome != string(record.Applied):
			lost = append(lost, fmt.Sprintf("%s was called applied, and after the cut it is %+v", id, r))
		case ttl != "" && strconv.Itoa(ttlOf(r.Config)) != ttl:
			lost = append(lost, fmt.Sprintf("%s was called applied with %s s, and after the cut it is %+v", id, ttl, r))
		}
	}
	p.tally.reported += len(told) - p.before.told
	p.tally.records += len(all) - p.before.records
	p.before.told, p.before.records = len(told), len(all)
	return lost
}

// What a start may find of git after a cut, half of what nobody was told of, and
// what it must not find, for it was synced. Of other repairs the tally tells.
var (
	remains = []string{"head ref is torn", "head is not whole", "head ref names", "torn object", "retried ref is torn", "stale lock"}
	losses  = []string{"lost", "damaged", "missing", "set aside", "the pack", "packed-refs", "HEAD of", "config of", "identity", "format"}
)

// repairs counts what the start repaired, and reports whether it gave a head
// up.
func (p *power) repairs() (gaveUp bool) {
	p.t.Helper()
	for _, r := range p.said.take() {
		in := func(word string) bool { return strings.Contains(r, word) }
		word := "other"
		if i := slices.IndexFunc(remains, in); i >= 0 {
			word = remains[i]
		} else if slices.ContainsFunc(losses, in) {
			p.t.Errorf("nothing that a power cut should leave: %s", r)
		}
		if strings.HasPrefix(word, "head ") {
			gaveUp = true
			p.tally.torn++
		}
		count(&p.tally.found, word, 1)
	}
	return gaveUp
}
