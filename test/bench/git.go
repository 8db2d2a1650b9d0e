package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"dtesn-agent/test/gitserver"
)

// How many refs the measured repository has.
const manyRefs, fewRefs = 10000, 200

// A scaffold stands in for a test where servers are made for tests.
type scaffold struct {
	testing.TB // never called: what is used is below
	dir        string
	ends       []func()
}

type failed struct{ error }

func (s *scaffold) Helper()                   {}
func (s *scaffold) Cleanup(end func())        { s.ends = append(s.ends, end) }
func (s *scaffold) Fatal(a ...any)            { panic(failed{errors.New(fmt.Sprint(a...))}) }
func (s *scaffold) Fatalf(f string, a ...any) { panic(failed{fmt.Errorf(f, a...)}) }
func (s *scaffold) Skip(a ...any)             { s.Fatal(a...) }

func (s *scaffold) TempDir() string {
	dir, err := os.MkdirTemp(s.dir, "server")
	if err != nil {
		s.Fatal(err)
	}
	return dir
}

// end ends what was started, the newest first, and makes a failure an error.
func (s *scaffold) end(err *error) {
	if r := recover(); r != nil {
		f, ok := r.(failed)
		if !ok {
			panic(r)
		}
		*err = f.error
	}
	for i := range s.ends {
		s.ends[len(s.ends)-1-i]()
	}
}

// gitRows measures a git repository as the source, reached in each way: what a
// poll that finds nothing new costs, beside a `git ls-remote` of the same
// repository, and how long what was pushed takes to the engine after SIGHUP.
func (b *bed) gitRows(runs int) (err error) {
	s := &scaffold{dir: b.dir}
	defer s.end(&err)
	bare, work := gitserver.NewRepository(s, s.TempDir(), 1), filepath.Join(s.TempDir(), "work")
	gitserver.Git(s, s.dir, "clone", "-q", bare, work)
	if err := os.CopyFS(filepath.Join(work, "config"), os.DirFS(b.config)); err != nil {
		return err
	}
	gitserver.Git(s, work, "add", "-A")
	gitserver.Git(s, work, "commit", "-q", "-m", "a configuration")
	gitserver.Git(s, work, "push", "-q", bare, "HEAD:main")
	head := gitserver.Git(s, bare, "rev-parse", "main")
	setRefs := func(n int) error {
		packed := "# pack-refs with: peeled fully-peeled sorted \n"
		for i := range n {
			packed += fmt.Sprintf("%s refs/heads/topic-%05d\n", head, i)
		}
		return os.WriteFile(filepath.Join(bare, "packed-refs"), []byte(packed), 0o600)
	}
	gitserver.Git(s, bare, "update-ref", "refs/heads/main", head)
	gitserver.Git(s, bare, "config", "uploadpack.allowFilter", "true")
	host := gitserver.SSH(s, bare, "AcceptEnv GIT_PROTOCOL")
	server, client := gitserver.NewCert(s, s.TempDir(), "server"), gitserver.NewCert(s, s.TempDir(), "client")
	secure := gitserver.HTTPS(s, filepath.Dir(bare), server, client, nil)
	tls := []string{"--git-ca-file", server.CertFile, "--git-cert-file", client.CertFile, "--git-key-file", client.KeyFile}
	env := []string{
		fmt.Sprintf("GIT_SSH_COMMAND=ssh -i %s -o UserKnownHostsFile=%s", host.Key, host.KnownHosts),
		"GIT_SSL_CAINFO=" + server.CertFile, "GIT_SSL_CERT=" + client.CertFile, "GIT_SSL_KEY=" + client.KeyFile,
	}
	for _, way := range []struct {
		name, repo string
		refs       int
		flags      []string
	}{
		{"path", bare, manyRefs, nil},
		{"http", gitserver.HTTP(s, filepath.Dir(bare), nil).URL + "/config.git", manyRefs, nil},
		{"https", secure.URL + "/config.git", manyRefs, tls},
		{"https", secure.URL + "/config.git", fewRefs, tls},
		{"ssh", host.URL, manyRefs, []string{"--git-ssh-key-file", host.Key, "--git-known-hosts-file", host.KnownHosts}},
	} {
		g := *b
		g.config, g.state = work, filepath.Join(s.TempDir(), "state")
		g.source = append([]string{"--repo", way.repo, "--config", "config"}, way.flags...)
		g.pushed = bare
		if err := setRefs(way.refs); err != nil {
			return err
		}
		measured, err := g.followed(s, fmt.Sprintf("%s, %d refs", way.name, way.refs), way.repo, env, runs)
		show(measured...)
		if err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
	}
	return nil
}

func (b *bed) followed(s *scaffold, name, repo string, env []string, runs int) ([]row, error) {
	poll := row{name: "look over " + name + ", CPU", budget: "6 ms, 3 with few refs; floor: git ls-remote"}
	push := row{name: "pushed to engine over " + name + ", after SIGHUP", budget: "p50 40 over https"}
	if err := b.start("--poll", "1h"); err != nil {
		return nil, err
	}
	<-b.told
	for range min(runs, 30) {
		took, err := b.push(s)
		if err != nil {
			b.stop()
			return nil, err
		}
		push.ours = append(push.ours, took)
	}
	idle := b.cpu(5 * time.Second)
	b.stop()
	const every = 100 * time.Millisecond
	if err := b.start("--poll", every.String()); err != nil {
		return nil, err
	}
	defer b.stop()
	b.cpu(45 * time.Second) // of some 450 looks
	for range 5 {
		if repo != b.pushed { // a path is watched
			poll.ours = append(poll.ours, max(0, b.cpu(time.Second)-idle/5)/time.Duration(time.Second/every))
		}
		cmd := exec.Command("git", "ls-remote", repo, "refs/heads/main")
		cmd.Env = append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%w: %s", err, out)
		}
		poll.floor = append(poll.floor, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
	}
	if repo == b.pushed {
		poll.ours = append(poll.ours, idle/5)
		poll.name, poll.budget = "a watched "+name+", CPU a second", "with all else"
	}
	held, err := b.held()
	memory := row{name: "memory after 500 looks", note: held, budget: memoryBudget}
	return []row{poll, push, memory}, err
}

// push declares the next state in a commit, and returns how long it takes from
// SIGHUP to the engine.
func (b *bed) push(s *scaffold) (time.Duration, error) {
	b.forget()
	b.n++
	if err := os.WriteFile(filepath.Join(b.config, "config", "production.yaml"), b.document(b.n), 0o600); err != nil {
		return 0, err
	}
	gitserver.Git(s, b.config, "commit", "-q", "-a", "-m", "state "+strconv.Itoa(b.n))
	gitserver.Git(s, b.config, "push", "-q", "-f", b.pushed, "HEAD:next")
	ref, next := filepath.Join(b.pushed, "refs", "heads", "main"), filepath.Join(b.pushed, "refs", "heads", "next")
	start := time.Now()
	if err := os.Rename(next, ref); err != nil { // as git moves a ref
		return 0, err
	}
	if b.source[1] != b.pushed { // a path needs no word
		if err := b.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			return 0, err
		}
	}
	select {
	case taken := <-b.took:
		_, err := b.awaitApplied(b.n)
		return taken.Sub(start), err
	case <-time.After(10 * time.Second):
		return 0, errors.New("the engine was not told within 10 s")
	}
}

// cpu is what the agent's threads spend within d.
func (b *bed) cpu(d time.Duration) time.Duration {
	before := b.spent()
	time.Sleep(d)
	return b.spent() - before
}

func (b *bed) spent() (sum time.Duration) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", b.cmd.Process.Pid))
	for _, path := range tasks {
		text, _ := os.ReadFile(path)
		first, _, _ := strings.Cut(string(text), " ")
		n, _ := strconv.ParseInt(first, 10, 64)
		sum += time.Duration(n)
	}
	return sum
}
