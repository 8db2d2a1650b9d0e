package schema

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"dtesn-agent/schema/problem"
)

const badSchemaFile = "testdata/schema/bad.txtar"

func badSchemas(t testing.TB) *txtar.Archive {
	t.Helper()
	archive, err := txtar.ParseFile(badSchemaFile)
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

// Each NAME.cue is a bad schema file, and NAME.want what is said of it.
func TestBadSchemas(t *testing.T) {
	archive, files := badSchemas(t), 0
	for i, f := range archive.Files {
		name, isSchema := strings.CutSuffix(f.Name, ".cue")
		if !isSchema {
			continue
		}
		files++
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "schema.cue")
			if err := os.WriteFile(path, f.Data, 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := Open(path)
			if err == nil {
				t.Fatalf("it is taken: %s", s.CUE())
			}
			wellFormedProblem(t, err)
			got := strings.ReplaceAll(problem.Text(err), path, "schema.cue") + "\n"
			want := &archive.Files[i+1]
			if *update {
				want.Data = []byte(got)
			} else if got != string(want.Data) {
				t.Errorf("got\n%swant\n%s", got, want.Data)
			}
		})
	}
	if files < 70 {
		t.Errorf("%d files; some are missing", files)
	}
	if *update {
		if err := os.WriteFile(badSchemaFile, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// wellFormedProblem asserts what every error of a schema file must have.
func wellFormedProblem(t *testing.T, err error) {
	t.Helper()
	var p *problem.Error
	if !errors.As(err, &p) || p.Op != "read schema" || p.Hint == "" || p.Err == nil || strings.Contains(p.Hint, "\n") {
		t.Fatalf("not a problem with a hint: %#v", err)
	}
	file, rest, _ := strings.Cut(p.Place, ".cue")
	if !strings.HasSuffix(file, "schema") || rest != "" && (!strings.HasPrefix(rest, ":") || strings.Count(rest, ":") != 2) {
		t.Errorf("at %q", p.Place)
	}
	if text := problem.Text(err); strings.ContainsAny(strings.ReplaceAll(text, p.Place, ""), "\n\r\x00\x1b") || len(text) > 1000 {
		t.Errorf("not one line: %q", text)
	}
}

func TestOpenWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	pipe, large, missing, secret := filepath.Join(dir, "pipe"), filepath.Join(dir, "large.cue"), filepath.Join(dir, "missing.cue"), filepath.Join(dir, "secret.cue")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(large, append(Default().CUE(), strings.Repeat("// more\n", 8<<10)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "secret.cue"), secret); err != nil {
		t.Fatal(err)
	}
	const hint = "; give --schema a CUE file; `agent schema --format cue` prints one"
	for path, want := range map[string]string{
		dir:         "not a regular file",
		pipe:        "not a regular file",
		"/dev/zero": "not a regular file",
		large:       "larger than 64 KiB",
		missing:     "no such file or directory",
		secret:      "too many levels of symbolic links",
		"":          "no such file or directory",
	} {
		start := time.Now()
		_, err := Open(path)
		if got, want := problem.Text(err), strings.TrimSuffix("read schema "+path, " ")+": "+want+hint; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%s took %v", path, took)
		}
		if path == missing && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v does not wrap its cause", err)
		}
	}
}
