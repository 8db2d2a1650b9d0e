package powercut

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"

	"dtesn-agent/apply"
	"dtesn-agent/gitstore/record"
)

// look holds what the start found against what was said before the cut.
func (p *power) look(st *apply.Status, mode string) {
	p.t.Helper()
	repo := filepath.Join(p.state(), "snapshots.git")
	for _, r := range p.said.take() { // what git lacks of the newest records is written again without a word
		p.t.Errorf("nothing that a power cut should leave: %s", r)
	}
	for _, lost := range p.lost() {
		p.t.Error(lost)
	}
	// What a rollback holds may be declared anew just behind it; a pause stays.
	if p.told == "pause" && (st.Held == nil || !st.Held.Paused) {
		p.t.Errorf("the pause was answered to be done, and after the cut the agent holds %+v", st.Held)
	}
	// The candidate was pending for a while: the journal was synced meanwhile.
	if _, there := p.records()[p.candidate]; mode == "pending" && !there {
		p.t.Errorf("the candidate %s is gone", p.candidate)
	}
	if intOf(*st.Current, sizeName) == 16384 {
		p.t.Error("a rejected state runs")
	}
	var faults []byte
	var fsck error
	p.until("git fsck is clean, or packing has left it alone", func() bool {
		faults, fsck = exec.Command("git", "--git-dir", repo, "fsck", "--strict", "--full").CombinedOutput()
		// a fsck that runs beside a packing misses loose files, or packs, that it listed
		return fsck == nil || !bytes.Contains(faults, []byte("No such file")) && !bytes.Contains(faults, []byte("index not opened"))
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
