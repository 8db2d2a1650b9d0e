package gitstore

import "testing"

// TestOpenReadsWhatIsNew: a start walks down to what was walked before, not through
// the whole history, and so does a reader.
func TestOpenReadsWhatIsNew(t *testing.T) {
	f := newMemory(t)
	s, _ := f.open()
	const records = 400
	for i := range records {
		applied(t, s, 64+i)
		s.Prepare()
	}
	s, repairs := f.reopen(s) // what was packed meanwhile is walked once
	noRepairs(t, repairs)
	s, repairs = f.reopen(s)
	noRepairs(t, repairs)
	if low := s.repo.chain.low; low != 0 && low < records/2 {
		t.Errorf("the start walked down to record %d of %d", low, records)
	}
	r, err := OpenReader(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if n, err := r.Total(); n != records || err != nil {
		t.Errorf("%d records, %v", n, err)
	}
	if low := r.repo.chain.low; low != 0 && low < records/2 {
		t.Errorf("the reader walked down to record %d of %d", low, records)
	}
}
