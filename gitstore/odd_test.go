package gitstore

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// oddRows are what git reads, or what nobody expects, in places of the agent's.
func oddRows() []repairRow {
	const mine = "refs/tags/user/@"
	return []repairRow{
		{"nothing amiss: refs of a person's that git takes, packed", func(st *story) {
			st.git("update-ref", mine, st.a.Commit)
			st.git("update-ref", "refs/tags/-v1", st.a.Commit)
			st.git("pack-refs", "--all")
		}, "d", "b", nil, false},
		{"nothing amiss: refs of a person's, in capitals and with words behind", func(st *story) {
			st.write(st.ref("tags/upper"), strings.ToUpper(st.a.Commit)+"\n")
			st.write(st.ref("tags/words"), st.a.Commit+" by hand\n")
		}, "d", "b", nil, false},
		{"file too large: the note", func(st *story) {
			st.write(filepath.Join(st.dir, appliedFile), strings.Repeat("x", maxNotes+1))
		}, "d", "b", []string{"applied holds"}, false},
		{"file or directory in a wrong place: a link for the note", func(st *story) {
			path := filepath.Join(st.dir, appliedFile)
			if err := os.Rename(path, path+"-elsewhere"); err != nil {
				st.t.Fatal(err)
			}
			st.link(path, path+"-elsewhere")
		}, "d", "b", []string{"a link where applied belongs"}, false},
		{"file or directory in a wrong place: a link below a file", func(st *story) {
			st.link(st.repo("HEAD"), "/dev/null/x")
		}, "d", "b", []string{"a link to nothing where HEAD belongs", "HEAD of the repository is missing"}, false},
		{"object of the head torn: a link to itself", func(st *story) {
			path := st.file("production")
			st.link(path, filepath.Base(path))
		}, "b", "b", []string{setAside, lostHead}, false},
	}
}

// TestACutIsNotForgotten: after a power cut whatever it tore is looked for, though
// the first start was refused, or killed.
func TestACutIsNotForgotten(t *testing.T) {
	f := newFixture(t)
	s, _ := f.open()
	applied(t, s, 1024)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	torn := f.repo("objects", "ab", strings.Repeat("c", 38))
	f.write(torn, "")
	f.write(filepath.Join(f.dir, lockFile), "4711 another-boot\n")
	wrong := f.options()
	wrong.Instance = "web-2"
	if _, _, err := Open(t.Context(), wrong); err == nil {
		t.Fatal("opened another's directory")
	}
	s, repairs := f.open()
	if len(repairs) == 0 {
		t.Error("the torn object is still there")
	}
	f.fsck()
	_, repairs = f.reopen(s)
	noRepairs(t, repairs)
}
