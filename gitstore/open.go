package gitstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// Options say which history to open, and for whom.
type Options struct {
	// Dir is the state directory; it is made, with mode 0700, if it is not there.
	Dir string
	// Environment and Instance are whose history it is. A directory of another
	// environment or instance is refused.
	Environment schema.Environment
	Instance    string
	// MaxSnapshots bounds the default page of List; 0 stands for
	// DefaultMaxSnapshots.
	MaxSnapshots int
	// KeepSnapshots, if not 0, lets records go that are older than so many, by
	// and by; see pruning in the package doc. 0 keeps all.
	KeepSnapshots int
	// Known reports whether the schema has a parameter, so that pruning keeps the
	// record that a rollback without an id goes to; nil stands for all.
	Known func(name string) bool
	// AgentVersion goes into records that do not say one.
	AgentVersion string
	// Now is the clock; nil stands for time.Now.
	Now func() time.Time
	// Logger takes what happens between calls, such as a reserve given up; nil
	// stands for none. What Open repairs is returned, not logged.
	Logger *slog.Logger
}

// A Store is the one writer of a snapshot repository. Its methods are called
// from one goroutine at a time. Snapshots it returns are shared and must not be
// changed.
type Store struct {
	opts    Options
	log     *slog.Logger
	lock    *writerLock                // nil while the directory is away, see hold
	holding atomic.Pointer[writerLock] // lock, for other goroutines
	standing
	reserveShort bool

	// compaction is what packs beside, nil if nothing does; packAt is the index
	// from which on it is worth looking.
	compaction *compaction
	packAt     int
	// repairs are what was found; once opened, they are logged too. explained:
	// one of them says why the history is not the one that was.
	repairs   []Repair
	explained bool
	opened    bool
	left      note // where it stood when the history was replaced
}

// standing is what is known of the repository.
type standing struct {
	repo    *repo
	objects objectWriter

	head, applied *record.Record
	lost          *record.Hold  // see lostFile
	replaced      bool          // see lossJSON.Replaced
	headFiles     []looseFile   // of the head's objects, if this process wrote them
	first         int           // index of the oldest record
	begin         plumbing.Hash // its line in the shallow file, zero if it is the first ever
	retried       plumbing.Hash
	hurt          bool // packing met damage; the next Probe reads all anew
	// headTime is the committer time of the head, commitTime that of the commit
	// being written.
	headTime, commitTime time.Time
}

const (
	formatFile   = "format"
	identityFile = "identity"
	setAsideDir  = "set-aside"
	newRepoGlob  = repoDir + ".new-*"

	opOpen    = "open the snapshot repository"
	upgradeIt = "upgrade the agent or choose another --state"
)

var environmentName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)

// validEnvironment reports whether name can be a branch and a file name.
func validEnvironment(name string) bool { return environmentName.MatchString(name) }

// Open takes the lock of a state directory, makes the repository if and only
// if nothing is there, finds and repairs what a crash, a disk or a person left
// behind, and returns what it repaired, in order. The error says what is in the
// way, with a hint: another agent holds the lock, the directory is of another
// environment or instance, was written by a newer agent, or cannot be used.
func Open(ctx context.Context, opts Options) (*Store, []Repair, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("open state directory %s: %w", opts.Dir, err)
	}
	if err := opts.check(); err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(filepath.Dir(opts.Dir), 0o755); err != nil {
		return nil, nil, stateError("make", opts.Dir, err)
	}
	if err := os.Mkdir(opts.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, nil, stateError("make", opts.Dir, err)
	}
	s := &Store{opts: opts, log: opts.Logger}
	s.forget()
	if err := s.take(ctx); err != nil {
		return nil, nil, err
	}
	s.lock.marking.Wait()
	s.opened = true
	return s, s.Repairs(), nil
}

func (o *Options) check() error {
	if o.Dir == "" {
		return problem.New(opOpen, errors.New("no state directory is given"), "use --state DIR")
	}
	if !validEnvironment(string(o.Environment)) {
		return problem.New(opOpen, fmt.Errorf("%q is no environment", o.Environment), "use --environment with a name of the schema, such as production")
	}
	if o.Instance == "" || oneLine(o.Instance, maxLine) != o.Instance {
		return problem.New(opOpen, fmt.Errorf("%q is no instance name", cut(o.Instance, 80)), fmt.Sprintf("give --instance one line of 1 to %d bytes without control characters", maxLine))
	}
	o.Dir = filepath.Clean(o.Dir)
	if o.MaxSnapshots <= 0 {
		o.MaxSnapshots = DefaultMaxSnapshots
	}
	if o.Known == nil {
		o.Known = func(string) bool { return true }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// open goes from a locked directory to a history that can be trusted. Nothing
// is changed before it is clear that the directory is ours.
func (s *Store) open(ctx context.Context) error {
	s.explained = false
	// clearPlace below may move the marks away, and what they say with them.
	was, err := s.hadHistory()
	if err != nil {
		return stateError("read", s.opts.Dir, err)
	}
	before := s.lost
	for _, name := range []string{formatFile, identityFile, reserveFile, walkedFile, appliedFile} {
		if err := s.clearPlace(filepath.Join(s.opts.Dir, name), false); err != nil {
			return stateError("clear", s.opts.Dir, err)
		}
	}
	for name, most := range map[string]int64{formatFile: maxRef, identityFile: maxRef, appliedFile: maxNotes} {
		if err := s.clearLarge(filepath.Join(s.opts.Dir, name), most); err != nil {
			return stateError("clear", s.opts.Dir, err)
		}
	}
	if err := s.clearLink(filepath.Join(s.opts.Dir, appliedFile)); err != nil {
		return stateError("clear", s.opts.Dir, err)
	}
	if err := s.checkFormat(); err != nil {
		return err
	}
	id, err := readIdentity(s.opts.Dir)
	if err != nil {
		return err
	}
	if id != nil && *id != (identity{s.opts.Environment, s.opts.Instance}) && !s.recordsAreOurs() {
		if err := s.checkIdentity(id.Environment, id.Instance); err != nil {
			return err
		}
	}
	if err := s.sweep(); err != nil {
		return stateError("sweep", s.opts.Dir, err)
	}
	there, err := s.findRepository(was)
	if err != nil {
		return err
	}
	if !there {
		if err := s.create(); err != nil {
			return stateError("make the snapshot repository in", s.opts.Dir, err)
		}
		s.first = 1
	} else if err := s.withReserve(true, func() error { return s.repair(ctx) }); err != nil {
		return err
	}
	if err := s.writeMarks(id); err != nil {
		return stateError("write into", s.opts.Dir, err)
	}
	if err := s.found(before); err != nil {
		return stateError("write into", s.opts.Dir, err)
	}
	if err := s.settleNotes(); err != nil {
		return stateError("write into", s.opts.Dir, err)
	}
	size, err := makeReserve(s.opts.Dir)
	s.reserveShort = err != nil || size < reserveSize
	return nil
}

// hadHistory reads lostFile, and reports whether a start came to its end here: it
// writes the marks last.
func (s *Store) hadHistory() (bool, error) {
	if err := s.readLost(); err != nil {
		return false, err
	}
	format, err := exists(filepath.Join(s.opts.Dir, formatFile))
	identity, ierr := exists(filepath.Join(s.opts.Dir, identityFile))
	return format || identity, errors.Join(err, ierr)
}

// findRepository reports whether there is a repository; was, whether there was
// one once. A link that leads nowhere is an error: the history is on a disk that
// is not mounted, and a new one must not be begun in its stead.
func (s *Store) findRepository(was bool) (bool, error) {
	path := s.repo.dir
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		return true, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, stateError("read", s.opts.Dir, err)
	}
	if target, rerr := os.Readlink(path); err != nil && rerr == nil {
		return false, &problem.Error{Op: opOpen, Place: path, Err: fmt.Errorf("it is a link to %s, which is not there", target), Hint: "mount or restore it, or remove the link to begin a new history"}
	}
	found := "a file where the snapshot repository belongs"
	if err != nil {
		found = "the snapshot repository is gone from the state directory"
	}
	if was {
		if err := s.lose(found); err != nil {
			return false, stateError("write into", s.opts.Dir, err)
		}
	}
	did, kept := s.begunAnew(), ""
	if err == nil {
		if kept, err = s.setAside(path, repoDir+"-is-a-file-"+s.stamp()); err != nil {
			return false, stateError("clear", s.opts.Dir, err)
		}
		did = "set aside; " + did
	}
	if was || kept != "" {
		s.explained = true
		s.repaired(found, did, kept)
	}
	return false, nil
}

// Head is the newest record, nil while there is none.
func (s *Store) Head() *record.Record { return s.head }

// Applied is the record that the applied ref names, nil if none.
func (s *Store) Applied() *record.Record { return s.applied }

// Total is the number of records that are there: all that were ever made, but
// for those that were pruned or lost.
func (s *Store) Total() int { return s.view().total() }

func (s *Store) view() view { return view{s.head, s.applied, max(s.first, 1)} }

// Lookup is Reader.Lookup on what the Store stands at.
func (s *Store) Lookup(ctx context.Context, id string) (record.Row, error) {
	return s.repo.lookup(ctx, s.view(), id)
}

// List is Reader.List on what the Store stands at; limit 0 or less stands for
// Options.MaxSnapshots.
func (s *Store) List(ctx context.Context, before string, limit int) ([]record.Row, error) {
	if limit <= 0 {
		limit = s.opts.MaxSnapshots
	}
	return s.repo.list(ctx, s.view(), before, limit)
}

// checkFormat refuses what a newer agent wrote.
func (s *Store) checkFormat() error {
	data, err := readBounded(filepath.Join(s.opts.Dir, formatFile), maxRef)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return stateError("read", s.opts.Dir, err)
	}
	// A torn file says nothing; each record bears the format too.
	if n, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && n > record.Format {
		return problem.New("", fmt.Errorf("state directory %s was written by a newer agent (format %d, this agent knows %d)", s.opts.Dir, n, record.Format), upgradeIt)
	}
	return nil
}

// checkIdentity refuses the history of somebody else.
func (s *Store) checkIdentity(env schema.Environment, instance string) error {
	if env == s.opts.Environment && instance == s.opts.Instance {
		return nil
	}
	return problem.New("", fmt.Errorf("state directory %s belongs to environment %q, instance %q, and this agent is environment %q, instance %q", s.opts.Dir, env, instance, s.opts.Environment, s.opts.Instance),
		fmt.Sprintf("choose another --state, or run with --environment %s --instance %s", env, shellWord(instance)))
}

// recordsAreOurs reports whether the records are of this environment and
// instance. A file beside them that says otherwise is wrong.
func (s *Store) recordsAreOurs() bool {
	ours := func(snap *record.Record) bool {
		return snap.Environment == s.opts.Environment && snap.Instance == s.opts.Instance
	}
	for _, ref := range []string{headRef(s.opts.Environment), appliedRef(s.opts.Environment)} {
		if n, err := s.look(ref); err == nil && n.snap != nil {
			return ours(n.snap)
		}
	}
	// The refs are lost: any record says so. A person may have fetched others'.
	found := errors.New("one is enough")
	is := false
	_ = s.repo.eachObject(func(h plumbing.Hash) error {
		if claimed, err := s.repo.claimed(h); err != nil || !claimed {
			return unlessCurable(err)
		}
		snap, err := s.repo.snapshot(h)
		if err != nil {
			return unlessCurable(err)
		}
		if is = ours(snap); is {
			return found
		}
		return nil
	})
	return is
}

// shellWord quotes a word for a command line that people copy.
func shellWord(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// writeMarks writes identity and format where they are not as they should be:
// format last, for it says that all else is there.
func (s *Store) writeMarks(id *identity) error {
	if err := s.writeIdentity(id); err != nil {
		return err
	}
	format := []byte(strconv.Itoa(record.Format) + "\n")
	path := filepath.Join(s.opts.Dir, formatFile)
	old, err := readBounded(path, maxRef)
	if err == nil && string(old) == string(format) {
		return nil
	}
	if err == nil {
		s.repaired(fmt.Sprintf("the file %s says %q", formatFile, cut(string(old), 80)), "written anew", "")
	}
	return writeDurable(path, format, 0o600)
}

func (s *Store) writeIdentity(id *identity) error {
	ours := identity{s.opts.Environment, s.opts.Instance}
	if id != nil && *id == ours {
		return nil
	}
	const did = "written anew, as the records and the settings say"
	if id != nil {
		s.repaired(fmt.Sprintf("the file %s names environment %q, instance %q, which the records do not", identityFile, id.Environment, cut(id.Instance, 80)), did, "")
	} else if torn, err := exists(filepath.Join(s.opts.Dir, identityFile)); err == nil && torn {
		s.repaired("the file "+identityFile+" is torn", did, "")
	}
	data, err := json.Marshal(ours)
	if err != nil {
		return err
	}
	return writeDurable(filepath.Join(s.opts.Dir, identityFile), append(data, '\n'), 0o600)
}

// The files of a fresh repository. gc.auto is 0, for a gc that git starts by
// itself would come at a time that nobody chose.
const configText = `[core]
	repositoryformatversion = 0
	filemode = true
	bare = true
[gc]
	auto = 0
`

func headText(env schema.Environment) string { return "ref: " + headRef(env) + "\n" }

// create makes the repository under another name and renames it into place, so
// that a half-made one is never taken for one.
//
// Syscalls: mkdirat and file writes below snapshots.git.new-…, fsync of each
// file and directory, renameat, fsync (the state directory).
func (s *Store) create() error {
	leftovers, err := glob(s.opts.Dir, newRepoGlob)
	if err != nil {
		return err
	}
	for _, path := range leftovers {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp(s.opts.Dir, newRepoGlob)
	if err != nil {
		return err
	}
	paths := []string{dir}
	for _, sub := range skeletonDirs() {
		path := filepath.Join(dir, sub)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		paths = append(paths, path)
	}
	for name, text := range map[string]string{"HEAD": headText(s.opts.Environment), "config": configText} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
		paths = append(paths, path)
	}
	if err := syncPaths(paths, nil); err != nil {
		return err
	}
	if err := os.Rename(dir, s.repo.dir); err != nil {
		return err
	}
	return syncPaths([]string{s.opts.Dir, filepath.Dir(s.opts.Dir)}, nil)
}

// skeletonDirs are the directories of a repository, parents first.
func skeletonDirs() []string {
	return []string{
		"objects", "objects/info", "objects/pack", "refs", "refs/heads", "refs/tags",
		"refs/dtesn", "refs/dtesn/applied", "refs/dtesn/retried", "tmp",
	}
}
