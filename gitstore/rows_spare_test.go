package gitstore

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"dtesn-agent/schema"
)

// spareRows damage the applied record, of which there is a second copy.
func spareRows() (rows []repairRow) {
	const row = "applied record damaged: "
	for _, object := range []struct{ name, expr string }{
		{"commit", "production~2"}, {"tree", "production~2^{tree}"}, {"snapshot.json", "production~2:snapshot.json"}, {"parameters.yaml", "production~2:parameters.yaml"},
	} {
		rows = append(rows,
			repairRow{row + object.name + " missing", func(st *story) { st.remove(st.file(object.expr)) }, "d", "b", []string{spareUsed}, false},
			repairRow{row + object.name + " torn", func(st *story) { st.halve(st.file(object.expr)) }, "d", "b", []string{setAside, spareUsed}, false},
		)
	}
	head := func(damage func(*story)) func(*story) {
		return func(st *story) {
			s, _ := st.open()
			confirm(st.t, s)
			if err := s.Close(); err != nil {
				st.t.Fatal(err)
			}
			damage(st)
		}
	}
	refs := []string{"heads/production", "dtesn/applied/production"}
	return append(rows,
		repairRow{row + "the head too", head(func(st *story) { st.halve(st.file("production:snapshot.json")) }), "d", "d", []string{setAside, spareUsed}, false},
		repairRow{row + "all of it missing", head(func(st *story) {
			for _, object := range []string{"production:parameters.yaml", "production:snapshot.json", "production^{tree}", "production"} {
				st.remove(st.file(object))
			}
		}), "d", "d", []string{spareUsed}, false},
		repairRow{row + "and both refs torn", head(func(st *story) {
			st.halve(st.file("production:snapshot.json"))
			for _, ref := range refs {
				st.write(st.ref(ref), "")
			}
		}), "d", "d", []string{setAside, spareUsed, neither, noTrust}, false},
		repairRow{row + "packed", head(func(st *story) {
			h := st.git("rev-parse", "production:snapshot.json")
			st.git("gc", "-q")
			packs, err := filepath.Glob(st.repo("objects", "pack", "*.pack"))
			if err != nil || len(packs) != 1 {
				st.t.Fatal(packs, err)
			}
			st.flip(packs[0], h)
		}), "d", "d", []string{thePack, spareUsed}, true},
	)
}

// tailRows put something behind the end of an object's file.
func tailRows() []repairRow {
	const row, found = "bytes behind the end of an object: ", "the file of the object "
	more := func(expr string) func(*story) {
		return func(st *story) {
			data, err := os.ReadFile(st.file(expr))
			if err != nil {
				st.t.Fatal(err)
			}
			st.write(st.file(expr), string(data)+zeros)
		}
	}
	return []repairRow{
		{row + "the head", more("production"), "d", "b", []string{found}, false},
		{row + "the head's content", more("production:snapshot.json"), "d", "b", []string{found}, false},
		{row + "the applied record", more("production~2^{tree}"), "d", "b", []string{found}, false},
		{row + "an old commit", more("production~3"), "d", "b", []string{found}, false},
		{row + "an old commit, without any ref", func(st *story) {
			more("production~3")(st)
			st.remove(st.repo("refs"))
		}, "d", "b", []string{found, "refs of the repository is missing", neither, noApplied}, false},
		{row + "what nothing names", func(st *story) {
			h := st.git("hash-object", "-w", st.repo("HEAD"))
			path := st.repo("objects", h[:2], h[2:])
			data, err := os.ReadFile(path)
			if err != nil {
				st.t.Fatal(err)
			}
			st.write(path, string(data)+"x")
			st.write(filepath.Join(st.dir, lockFile), "1 another-boot\n")
		}, "d", "b", []string{found}, false},
	}
}

// flip changes a byte within an object of a pack.
func (f *fixture) flip(pack, h string) {
	f.t.Helper()
	for line := range strings.Lines(f.git("verify-pack", "-v", strings.TrimSuffix(pack, ".pack")+".idx")) {
		words := strings.Fields(line)
		if len(words) < 5 || words[0] != h {
			continue
		}
		data, err := os.ReadFile(pack)
		if err != nil {
			f.t.Fatal(err)
		}
		size, offset := f.number(words[3]), f.number(words[4])
		data[offset+size/2] ^= 0xff
		f.write(pack, string(data))
		return
	}
	f.t.Fatalf("%s has no %s", pack, h)
}

// TestSpareIsExact restores the applied record, object for object, after a prune
// of a person's took it between two lives of the agent.
func TestSpareIsExact(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	applied(t, s, 512)
	rec := commit(t, s, change(640))
	s2, err := s.Commit(t.Context(), revert(rec, s.Applied(), "refused"))
	if err != nil {
		t.Fatal(err)
	}
	confirm(t, s)
	objects, err := s.repo.objectsOf(hashOf(s2))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{}
	for _, h := range objects {
		path := s.repo.objectPath(h)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want[path] = data
		f.remove(path)
	}
	s, repairs := f.reopen(s)
	expect(t, s, s2, s2)
	if hold := s.Head().Hold(); hold == nil || len(hold.Entries) != 1 {
		t.Errorf("the hold is %+v", hold)
	}
	if len(repairs) != 1 || !strings.HasPrefix(repairs[0].Found, spareUsed) || !strings.Contains(repairs[0].Did, "of its objects were written anew") {
		t.Errorf("repairs: %v", repairs)
	}
	for path, data := range want {
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s is another: %v", path, err)
		}
	}
	f.fsck()
}

// TestSpareIsWhole takes a second copy that is torn, or of another record, for
// none, and one that an older, longer one stands behind for what it is.
func TestSpareIsWhole(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	long := change(512)
	long.Errors = []string{string(bytes.Repeat([]byte("x1y2"), 40)), "and more", "and yet more"}
	commit(t, s, long)
	confirm(t, s)
	rec := applied(t, s, 640)
	path := filepath.Join(f.dir, appliedFile)
	data, err := os.ReadFile(path)
	if err != nil || len(s.repo.spare(hashOf(rec))) != recordObjects {
		t.Fatalf("no second copy of the newest record: %v", err)
	}
	if s.repo.spare(hashOf(s.Applied())) == nil || s.repo.spare([20]byte{1}) != nil {
		t.Error("a second copy of a record that was never made")
	}
	begin := bytes.Index(data, []byte("\n\n")) + 2
	for at := begin; at < len(data)*2/3; at++ {
		torn := bytes.Clone(data)
		torn[at] ^= 1
		f.write(path, string(torn))
		if files := s.repo.spare(hashOf(rec)); files != nil && !sameFiles(files, data) {
			t.Fatalf("a second copy with a wrong byte at %d", at)
		}
		f.write(path, string(data[:at]))
		if s.repo.spare(hashOf(rec)) != nil {
			break // all of it is there
		}
	}
}

// sameFiles reports whether the bytes of all files stand in data.
func sameFiles(files []looseFile, data []byte) bool {
	for _, file := range files {
		if !bytes.Contains(data, file.data) {
			t, content, err := decodeObject(file.data)
			return err == nil && checkObject(t, t, file.hash, content) == nil
		}
	}
	return true
}

// TestSpareIsBounded leaves a record out that is too large for a second copy.
func TestSpareIsBounded(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	rec := change(512)
	for i := range 3000 {
		name := string(noise(4000)[i : i+60])
		rec.Experiments = append(rec.Experiments, schema.Membership{Name: strings.ToValidUTF8(name, "?")})
	}
	snap := commit(t, s, rec)
	confirm(t, s)
	info, err := os.Stat(filepath.Join(f.dir, appliedFile))
	if err := errors.Join(err, s.Close()); err != nil || info.Size() > maxNotes {
		t.Fatal(info, err)
	}
	s, repairs := f.open()
	noRepairs(t, repairs)
	expect(t, s, snap, snap)
}

func (f *fixture) number(text string) int {
	f.t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}
