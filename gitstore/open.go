package gitstore

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/go-git/go-git/v5/plumbing"
	"golang.org/x/sys/unix"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// open reads what lies in the locked directory. If that fails, what was known stays
// known, and is read again before anything is written. before is the head that the
// Store had, nil at the start.
func (s *Store) open(ctx context.Context, before *record.Record) error {
	was, told := s.history, len(s.repairs)
	s.reload = true // what is repaired is logged once all is well
	s.history = history{journal: journal{dir: s.opts.Dir, live: -1}, repo: newRepo(s.opts.Dir, s.opts.Environment)}
	if err := s.read(ctx, before); err != nil {
		s.history, s.repairs = was, s.repairs[:told]
		return err
	}
	for _, r := range s.repairs[told:] {
		s.logRepair(r)
	}
	s.reload, s.lock.head = false, ""
	return nil
}

// read goes from a locked directory to a history that can be trusted. Nothing is
// changed before it is clear that the directory is ours.
func (s *Store) read(ctx context.Context, before *record.Record) error {
	format, err := s.readFormat()
	if err != nil {
		return err
	}
	var seg segment
	var live int
	if s.ledger, seg, live, err = readLedger(s.opts.Dir); err != nil {
		return err
	}
	// With another format the first start was killed, or an upgrade. After a clean stop
	// nothing is torn.
	isOlder := s.ledger != nil && s.lock.head != "" && s.lock.head != s.ledger.Head // it was copied back
	seg.damaged = format == storeFormat && (seg.damaged || isOlder || seg.torn && !s.lock.killed)
	if err := s.checkIdentity(); err != nil {
		return err
	}
	there, err := s.findRepository(format)
	if err != nil {
		return err
	}
	same := false
	err = s.sweep()
	if err == nil {
		same, err = s.choose(there, format, seg, &before)
	}
	if err == nil {
		err = s.load()
	}
	if err == nil {
		err = s.carryHold(before)
	}
	if err == nil {
		// What a killed process wrote last may not be on the disk.
		err = s.goOn(seg, live, same && before == nil && !s.lock.killed)
	}
	if err == nil {
		err = s.settle(ctx)
	}
	if err == nil {
		err = s.writeMarks(format)
	}
	if err != nil {
		return stateError("write into", s.opts.Dir, err)
	}
	return nil
}

// goOn makes the journal go on in a segment that was read, if it is sound, or in a new
// one.
func (s *Store) goOn(seg segment, live int, sound bool) error {
	s.journal.adopt(seg, live)
	if !sound {
		return s.beginSegment(s.ledger)
	}
	if s.journal.isTorn(true) {
		if err := s.beginSegment(s.ledger); err != nil { // on a full disk; the next append tries it again
			s.log.Warn("the journal cannot be written anew", "error", err)
		}
	}
	return nil
}

// choose decides whether the journal or the repository says what the history is,
// and makes the other follow. It reports whether the ledger is that of the journal
// still. before becomes the head of a history that another one replaces.
func (s *Store) choose(there bool, format int, seg segment, before **record.Record) (same bool, err error) {
	if s.ledger == nil {
		return false, s.beginLedger(there, format)
	}
	s.serveFromJournal()
	head, err := s.repo.named(s.ledger.Head)
	took := false
	if err == nil && there {
		if took, err = s.takeRefs(head, seg.damaged || seg.torn); took {
			*before = cmp.Or(*before, head)
		}
	}
	if err == nil && there && !took {
		there, err = s.setUnusableAside()
	}
	if err == nil && !there {
		s.repaired("the repository is missing", "begun anew from the journal", "")
		err = s.rebuild()
	}
	if err != nil {
		return false, err
	}
	if _, err := s.repo.named(s.ledger.Applied); errors.Is(err, errDamaged) { // it is nowhere
		s.ledger.Applied = ""
		seg.damaged = true
	}
	if seg.damaged {
		s.repaired("the journal is damaged", "it goes on from what is left of it and from the refs of the repository", "")
		s.lose("the journal is damaged, and newer records, a hold or a pause may be lost")
	}
	return there && !took && !seg.damaged, nil
}

// setUnusableAside sets the repository aside if the journal cannot go on with it, and
// reports whether it is there still.
func (s *Store) setUnusableAside() (there bool, err error) {
	if s.repo.isOther(s.ledger) {
		return false, s.setRepositoryAside("unreadable", "another repository, of which no record of this agent can be read")
	}
	absent, err := s.baseAbsent()
	if absent {
		err = s.setRepositoryAside("incomplete", "the repository lacks what the newest records stand on")
	}
	return !absent, err
}

// load reads the records that the ledger names.
func (s *Store) load() (err error) {
	s.serveFromJournal()
	if s.head, err = s.repo.named(s.ledger.Head); err == nil {
		s.applied, err = s.repo.named(s.ledger.Applied)
	}
	return err
}

// settle brings the repository in line with the ledger.
func (s *Store) settle(ctx context.Context) error {
	if s.lock.killed {
		s.removeStale()
		if err := s.removeLeftPacks(); err != nil {
			s.log.Warn("removing old packs failed", "error", err)
		}
	}
	s.mend()
	return cmp.Or(s.write(s.repo.lacking(s.ledger.entries)...), ctx.Err())
}

// mend puts right the files of the repository that are no refs and no objects. git
// refuses to work with one that a power cut or a full disk left empty or cut short.
func (s *Store) mend() {
	isHash := func(line string) bool { _, ok := parseHash(line); return ok }
	s.mendError = errors.Join(
		s.mendFile(headFile, func(string) string { return headText(s.opts.Environment) }),
		s.mendFile(configFile, func(old string) string {
			if strings.Contains(old, "bare = true\n") && !strings.Contains(old, "\x00") {
				return old // with what a person wrote into it
			}
			return configText
		}),
		s.mendFile(packedFile, func(old string) string { return goodLines(old, isPackedRef) }),
		s.mendFile(shallowFile, func(old string) string { return goodLines(old, isHash) }),
		s.writeShallow(s.ledger.Begin))
}

// mendFile writes a file of the repository as it should be, if it is not that.
func (s *Store) mendFile(name string, mended func(old string) string) error {
	path := filepath.Join(s.repo.dir, name)
	data, err := readBounded(path, maxPacked)
	if err != nil && !isAbsent(err) {
		return err
	}
	text := mended(string(data))
	if text == string(data) {
		return nil
	}
	if len(data) > 0 && name != headFile {
		if err := s.setTornAside(path); err != nil {
			return err
		}
	}
	return writeDurable(path, []byte(text), refPerm)
}

// goodLines returns the lines of a text that are whole and good.
func goodLines(text string, isGood func(line string) bool) string {
	var good strings.Builder
	for line := range strings.Lines(text) {
		if content, isWhole := strings.CutSuffix(line, "\n"); isWhole && isGood(content) {
			good.WriteString(line)
		}
	}
	return good.String()
}

// readLedger reads the journal: the ledger, nil without one, and the segment that it
// is in.
func readLedger(dir string) (*ledger, segment, int, error) {
	seg, live, err := readJournal(dir)
	if err != nil {
		return nil, seg, live, stateError("read", dir, err)
	}
	if live < 0 {
		return nil, seg, live, nil
	}
	l, err := replay(seg.frames)
	if err != nil { // whole, and of a version that nobody knows
		err = &problem.Error{Op: opOpen, Place: segmentPath(dir, live), Err: err, Hint: upgradeIt}
	}
	return l, seg, live, err
}

// named returns the record with a commit, nil for "".
func (r *repo) named(commit string) (*record.Record, error) {
	if commit == "" {
		return nil, nil
	}
	return r.snapshot(plumbing.NewHash(commit))
}

// serveFromJournal makes the objects that the journal has readable, whether the
// repository has them or not.
func (s *Store) serveFromJournal() {
	objects := s.ledger.objects()
	s.repo.journaled.Store(&objects)
}

// lose makes Lost return a pause once the next segment begins, for the reason why.
func (s *Store) lose(why string) {
	if s.ledger.Facts[lostFact] != nil {
		return
	}
	reason := fmt.Sprintf("the history in %s cannot be read: %s", s.repo.dir, why)
	hold := &record.Hold{Paused: true, By: "agent", Reason: problem.Line(reason, maxReason), Since: record.Unix(s.opts.Now())}
	text, _ := json.Marshal(hold) // it cannot fail
	s.ledger.set(lostFact, text)
}

// readFormat returns the format of the directory, 0 for a new one. It refuses what
// a newer agent wrote. A torn file counts as this agent's format.
func (s *Store) readFormat() (int, error) {
	data, err := readBounded(filepath.Join(s.opts.Dir, formatFile), maxRef)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, stateError("read", s.opts.Dir, err)
	}
	switch n, err := strconv.Atoi(strings.TrimSpace(string(data))); {
	case err != nil || n < 1:
		return storeFormat, nil
	case n > storeFormat:
		return 0, problem.New("", fmt.Errorf("state directory %s was written by a newer agent (format %d, this agent knows %d)", s.opts.Dir, n, storeFormat), upgradeIt)
	default:
		return n, nil
	}
}

// CheckOwner reports whether another user could have prepared a state directory or its
// journal, or can change them: Open refuses that.
func CheckOwner(state string) error {
	for i, path := range []string{state + "/", segmentPath(state, 0), segmentPath(state, 1)} { // the directory may be a link
		info, err := os.Lstat(path)
		if i > 0 && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && i > 0 && !info.Mode().IsRegular() {
			err = &fs.PathError{Op: "open", Path: path, Err: errIrregular}
		}
		if err != nil {
			return stateError("use", state, err)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
			return &problem.Error{Op: opOpen, Place: filepath.Clean(path), Err: fmt.Errorf("it belongs to uid %d, and the agent runs as uid %d", st.Uid, os.Geteuid()), Hint: "chown it, or choose another --state"}
		}
		if mode := info.Mode().Perm(); i == 0 && mode&0o022 != 0 { // a volume, say
			return &problem.Error{Op: opOpen, Place: filepath.Clean(path), Err: fmt.Errorf("others than its owner can write into it (mode %04o)", mode), Hint: "give --state a directory in it, which the agent makes with mode 0700, or chmod go-w it"}
		}
	}
	return nil
}

// An identity says whose a history is; <state>/identity and the journal have it.
type identity struct {
	Environment schema.Environment `json:"environment"`
	Instance    string             `json:"instance"`
}

func (s *Store) identity() identity { return identity{s.opts.Environment, s.opts.Instance} }

// readIdentity reads <state>/identity; nil if it is missing or torn, for journal
// and records say the same.
func readIdentity(state string) (*identity, error) {
	data, err := readBounded(filepath.Join(state, identityFile), maxRef)
	id := new(identity)
	if json.Unmarshal(data, id) != nil || !validEnvironment(string(id.Environment)) || id.Instance == "" {
		id = nil
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errTooLarge) {
		err = nil
	}
	return id, err
}

// checkIdentity refuses the history of somebody else. The journal is believed
// before the file, and the file before the newest record.
func (s *Store) checkIdentity() error {
	id, err := readIdentity(s.opts.Dir)
	if err != nil {
		return stateError("read", s.opts.Dir, err)
	}
	if s.ledger != nil {
		id = &s.ledger.identity
	}
	ours := s.identity()
	if id == nil || *id == ours {
		return nil
	}
	return problem.New("", fmt.Errorf("state directory %s belongs to environment %q, instance %q, and this agent is environment %q, instance %q", s.opts.Dir, id.Environment, id.Instance, ours.Environment, ours.Instance),
		fmt.Sprintf("choose another --state, or run with --environment %s --instance %q", id.Environment, id.Instance))
}

// writeMarks writes identity and format where they are not as they should be:
// format last, for it says that all else is there.
func (s *Store) writeMarks(format int) error {
	text, _ := json.Marshal(s.identity()) // it cannot fail
	if err := s.writeMark(identityFile, string(text)+"\n"); err != nil {
		return err
	}
	if format == 1 {
		_ = os.Remove(filepath.Join(s.repo.dir, retriedRef(s.opts.Environment)))
		for _, name := range []string{"applied", "walked", "reserve", "lost"} { // of format 1 alone
			_ = os.Remove(filepath.Join(s.opts.Dir, name))
		}
	}
	return s.writeFormat()
}

func (s *Store) writeFormat() error { return s.writeMark(formatFile, strconv.Itoa(storeFormat)+"\n") }

func (s *Store) writeMark(name, text string) error {
	path := filepath.Join(s.opts.Dir, name)
	if old, err := readBounded(path, maxRef); err == nil && string(old) == text {
		return nil
	}
	return writeDurable(path, []byte(text), 0o600)
}

// sweep removes what an earlier process had on its way to another place.
func (s *Store) sweep() error {
	for _, left := range []struct{ dir, pattern string }{{s.opts.Dir, tempGlob}, {s.repo.dir, tempGlob}, {s.opts.Dir, newRepoGlob}} {
		paths, err := glob(left.dir, left.pattern)
		for _, path := range paths {
			if info, lerr := os.Lstat(path); lerr == nil && info.IsDir() == (left.pattern == newRepoGlob) { // else it is not ours
				err = errors.Join(err, os.RemoveAll(path))
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// findRepository reports whether there is a repository. A link that leads nowhere is an
// error: the history is on a disk that is not mounted.
func (s *Store) findRepository(format int) (bool, error) {
	path := s.repo.dir
	info, err := os.Stat(path)
	target, rerr := os.Readlink(path)
	if err == nil && info.IsDir() {
		there, serr := exists(s.repo.objects())
		if there || serr != nil || rerr != nil || format == 0 {
			return true, nil
		}
		err = fs.ErrNotExist // an empty mount point
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && rerr == nil:
		return false, &problem.Error{Op: opOpen, Place: path, Err: fmt.Errorf("it is a link to %s, where no repository is", target), Hint: "mount or restore it, or remove the link to begin a new history"}
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, stateError("read", s.opts.Dir, err)
	}
	err = s.setRepositoryAside("is-a-file", "a file in the place of the repository")
	return false, err
}

// setRepositoryAside moves what lies in the place of the repository to
// <state>/set-aside.
func (s *Store) setRepositoryAside(why, found string) error {
	s.repo.closePacks()
	return s.setAside(os.Rename, s.repo.dir, repoDir+"-"+why, found)
}

// setTornAside gives a torn file of the repository a second name in <state>/set-aside.
func (s *Store) setTornAside(path string) error {
	name := strings.TrimPrefix(path, s.repo.dir+"/")
	return s.setAside(os.Link, path, strings.ReplaceAll(name, "/", "-"), name+" of the repository is torn")
}

func (s *Store) setAside(how func(from, to string) error, path, name, found string) error {
	dir := filepath.Join(s.opts.Dir, setAsideDir)
	kept := filepath.Join(dir, name+"-"+s.stamp())
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = how(path, kept)
	}
	if err == nil {
		err = syncPaths([]string{dir, s.opts.Dir})
	}
	if err != nil {
		return fmt.Errorf("set %s aside: %w", path, err)
	}
	s.repaired(found, "set aside", kept)
	return nil
}

const (
	headFile   = "HEAD"
	configFile = "config"
	// configText turns gc.auto off: a gc that git starts by itself would come at a time
	// that nobody chose.
	configText = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n[gc]\n\tauto = 0\n"
)

func headText(env schema.Environment) string { return "ref: " + headRef(env) + "\n" }

// createRepository makes the repository under another name and renames it into
// place, so that a half-made one is never taken for one.
func (s *Store) createRepository(shallow string) error {
	dir, err := os.MkdirTemp(s.opts.Dir, newRepoGlob)
	if err != nil {
		return err
	}
	for _, sub := range []string{"objects/info", "objects/pack", "refs/heads", "refs/tags", "refs/dtesn/applied"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(dir, sub), 0o755))
	}
	s.ledger.Marker = rand.Text()
	files := map[string]string{headFile: headText(s.opts.Environment), configFile: configText, markerFile: s.ledger.Marker}
	if shallow != "" {
		files[shallowFile] = shallow
	}
	for name, text := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	if err == nil {
		err = syncWhole(dir)
	}
	if err == nil {
		err = os.Rename(dir, s.repo.dir)
	}
	if err != nil {
		return err
	}
	return syncPaths([]string{s.opts.Dir, filepath.Dir(s.opts.Dir)})
}

// syncWhole syncs the file system on which path lies, and with it all below.
func syncWhole(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}
