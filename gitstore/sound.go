package gitstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/go-git/go-git/v5/plumbing/format/config"
)

// Files that this package hardly reads, and people's git reads at each command:
// it refuses all work over one that it cannot read.

// configFault says why git cannot work with a repository of this config, or
// would take it for another than the one that lies there; "" if it can. What
// else a person wrote there is theirs.
func configFault(text []byte) string {
	cfg := config.New()
	if err := config.NewDecoder(bytes.NewReader(text)).Decode(cfg); err != nil {
		return "git cannot read it: " + oneLine(err.Error(), maxLine)
	}
	for _, name := range configNames(cfg) { // go-git takes letters of any script
		if strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" {
			return fmt.Sprintf("git cannot read it: %q is no name", cut(name, 80))
		}
	}
	for _, key := range []string{"compression", "loosecompression"} {
		level := cfg.Section("core").Option(key)
		if n, err := strconv.Atoi(level); level != "" && (err != nil || n < -1 || n > 9) {
			return fmt.Sprintf("core.%s is %q, and no level of compression", key, cut(level, 80))
		}
	}
	if value := strings.ToLower(cfg.Section("core").Option("filemode")); !slices.Contains([]string{"", "true", "false", "yes", "no", "on", "off", "1", "0"}, value) {
		return fmt.Sprintf("core.filemode is %q", cut(value, 80))
	}
	core, extensions := cfg.Section("core"), cfg.Section("extensions")
	version := core.Option("repositoryformatversion")
	if n, err := strconv.Atoi(version); core.HasOption("repositoryformatversion") && (err != nil || n < 0 || n > 1) {
		return fmt.Sprintf("repositoryformatversion is %q", cut(version, 80))
	}
	if bare := strings.ToLower(core.Option("bare")); bare != "true" && bare != "yes" && bare != "on" && bare != "1" {
		return "it does not say bare = true"
	}
	for _, o := range extensions.Options {
		switch key, value := strings.ToLower(o.Key), strings.ToLower(o.Value); {
		case key == "noop", key == "preciousobjects", key == "partialclone", key == "worktreeconfig":
		case version == "1" && (key == "objectformat" && value == "sha1" || key == "refstorage" && value == "files"):
		default:
			return fmt.Sprintf("the repository is not one with the extension %q", cut(o.Key, 80))
		}
	}
	return ""
}

// configNames are the names of all sections and keys.
func configNames(cfg *config.Config) (names []string) {
	for _, section := range cfg.Sections {
		names = append(names, section.Name)
		for _, o := range section.Options {
			names = append(names, o.Key)
		}
		for _, sub := range section.Subsections {
			for _, o := range sub.Options {
				names = append(names, o.Key)
			}
		}
	}
	return names
}

// mendConfig sets a config aside with which git cannot work, and writes it anew.
func (s *Store) mendConfig() error {
	path := filepath.Join(s.repo.dir, "config")
	old, err := readBounded(path, maxObject)
	why := ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		why = "is missing"
	case err != nil:
		return err
	case len(bytes.TrimSpace(old)) == 0:
		why = "is empty"
	default:
		if why = configFault(old); why == "" {
			return nil
		}
		why = "cannot be used: " + why
	}
	kept := ""
	if len(old) > 0 {
		if kept, err = s.setAside(path, "config-torn"); err != nil {
			return err
		}
	}
	if err := writeDurable(path, []byte(configText), 0o644); err != nil {
		return err
	}
	s.repaired("config of the repository "+why, "written anew", kept)
	return nil
}

// mendPackedRefs writes packed-refs anew without the lines that git refuses to
// read the file for, and keeps the old one.
func (s *Store) mendPackedRefs() error {
	path := filepath.Join(s.repo.dir, packedRefs)
	data, err := readBounded(path, maxPacked)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	good, bad := soundLines(data)
	if bad == 0 {
		return nil
	}
	kept, err := s.asidePath("packed-refs-torn")
	if err != nil {
		return err
	}
	// A copy: a crash between the two must not lose the lines that are good.
	if err := errors.Join(writeDurable(kept, data, refPerm), writeDurable(path, good, refPerm)); err != nil {
		return err
	}
	s.repaired(fmt.Sprintf("packed-refs has %d lines that git cannot read", bad), "written anew without them", kept)
	return nil
}

// soundLines are the refs of a packed-refs file, without the header, which may
// promise an order that they do not have; and how many lines are none.
func soundLines(data []byte) (good []byte, bad int) {
	peelable, n := false, 0
	for line := range strings.Lines(string(data)) {
		n++
		text, ended := strings.CutSuffix(line, "\n")
		hex, ref, _ := strings.Cut(text, " ")
		peeled, isPeeled := strings.CutPrefix(text, "^")
		_, isHash := parseHash(hex)
		_, isPeel := parseHash(peeled)
		switch {
		case !ended:
			bad++
		case n == 1 && strings.HasPrefix(line, "# pack-refs with:"):
		case isPeeled && isPeel && peelable:
			peelable = false
			good = append(good, line...)
		case isHash && refName(ref):
			peelable = true
			good = append(good, line...)
		default:
			peelable = false
			bad++
		}
	}
	return good, bad
}

// refName reports whether git takes a name for that of a ref: the rules of
// git-check-ref-format(1), which go-git's are stricter than.
func refName(ref string) bool {
	for _, part := range strings.Split(ref, "/") {
		if part == "" || strings.HasPrefix(part, ".") || strings.HasSuffix(part, ".lock") {
			return false
		}
	}
	bad := func(r rune) bool { return r < ' ' || r == 0x7f || strings.ContainsRune(" ~^:?*[\\", r) }
	return strings.Contains(ref, "/") && !strings.HasSuffix(ref, ".") && !strings.ContainsFunc(ref, bad) &&
		!strings.Contains(ref, "..") && !strings.Contains(ref, "@{")
}

// mendCaches sets aside what git keeps for speed alone and is torn: it refuses
// to work over the one, and complains of the other.
func (s *Store) mendCaches() error {
	for _, name := range []string{"pack/multi-pack-index", "info/commit-graph"} {
		path := filepath.Join(s.repo.objects(), name)
		if err := s.clearPlace(path, false); err != nil {
			return err
		}
		sound, err := sumRight(path)
		if sound || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil && !errors.Is(err, errTooLarge) {
			return err
		}
		kept, err := s.setAside(path, filepath.Base(name)+"-torn")
		if err != nil {
			return err
		}
		s.repaired("objects/"+name+", which git keeps for speed, is torn", "set aside", kept)
	}
	return nil
}

// mendHead writes HEAD anew unless it names the branch.
func (s *Store) mendHead() error {
	path, text := filepath.Join(s.repo.dir, "HEAD"), headText(s.opts.Environment)
	old, err := readBounded(path, maxRef)
	if err == nil && string(old) == text {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errTooLarge) {
		return err
	}
	found := fmt.Sprintf("HEAD of the repository says %q", cut(string(old), 80))
	switch {
	case errors.Is(err, errTooLarge):
		found = fmt.Sprintf("HEAD of the repository has over %d bytes", maxRef)
	case err != nil:
		found = "HEAD of the repository is missing"
	}
	if err := writeDurable(path, []byte(text), 0o644); err != nil {
		return err
	}
	s.repaired(found, "written anew", "")
	return nil
}
