package gitstore

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Damage that packing meets is mended while the agent runs, at its next quiet
// moment; and should it be ended before, by the next start, whatever that noted.
func TestMendsWhatPackingMeets(t *testing.T) {
	often(t)
	for _, name := range []string{"runs on", "is started again"} {
		t.Run(name, func(t *testing.T) {
			f := newMemory(t)
			s, _ := f.openKeeping(10)
			for i := range 20 {
				applied(t, s, 64+i)
			}
			f.git("gc", "-q")
			packs, err := filepath.Glob(f.repo("objects", "pack", "*.pack"))
			if err != nil || len(packs) != 1 {
				t.Fatal(packs, err)
			}
			data, err := os.ReadFile(packs[0])
			if err != nil {
				t.Fatal(err)
			}
			for i := range 40 {
				data[len(data)/2+i] ^= 0xff
			}
			f.write(packs[0], string(data))
			s.repo.noteWalked(hashOf(s.head), s.begin) // as rot that no time of the file shows
			for i := range 12 {
				applied(t, s, 500+i)
				s.Prepare()
				if s.compaction != nil {
					<-s.compaction.over
				}
			}
			if _, _, known, err := s.repo.walked(); known || err != nil {
				t.Errorf("the next start would believe what was noted: %v", err)
			}
			if name == "runs on" {
				if err := s.Probe(t.Context()); err != nil {
					t.Fatal(err)
				}
			} else {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s, _ = f.openKeeping(10)
			}
			if torn := s.Repairs()[0]; !strings.Contains(torn.String(), "is torn: set aside; ") {
				t.Error(torn)
			}
			for i := range 30 {
				applied(t, s, 600+i)
				s.Prepare()
				s.settleCompaction()
			}
			if n := s.Total(); n > 10+4*packEvery {
				t.Errorf("%d records are left", n)
			}
			f.fsck() // what was lost is pruned by now
			before := len(s.Repairs())
			if err := s.Probe(t.Context()); err != nil || len(s.Repairs()) != before {
				t.Errorf("%v %v", err, s.Repairs()[before:])
			}
		})
	}
}
