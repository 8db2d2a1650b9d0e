package gitstore

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const zeros = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

const (
	lostHead  = "the head is not whole ("
	noHead    = "the head ref names "
	tornHead  = "the head ref is torn ("
	noApplied = "the applied ref is missing"
	noTrust   = "the applied ref cannot be trusted"
	setAside  = "a torn object"
	neither   = "neither head nor applied ref"
	tornRef   = "is torn"
	thePack   = "the pack pack-"
	isLost    = " of the history is lost"
	theConfig = "config of the repository "
	replaced  = "the agent stood at "
	derived   = "parameters.yaml of the record snapshot_"
	spareUsed = "the applied record snapshot_"

	oldRetried = "the retried ref names "
)

// A repairRow is one kind of damage. head and applied are the letters of the
// records that stand after it, "" for none.
type repairRow struct {
	name          string
	damage        func(st *story)
	head, applied string
	found         []string // what each Repair begins with or says, in order
	dirty         bool     // git fsck misses what no repair can bring back
}

func repairRows() []repairRow {
	ref := func(name, content string) func(*story) {
		return func(st *story) { st.write(st.ref(name), content) }
	}
	rm := func(expr string) func(*story) { return func(st *story) { st.remove(st.file(expr)) } }
	empty := func(expr string) func(*story) { return func(st *story) { st.write(st.file(expr), "") } }
	half := func(expr string) func(*story) { return func(st *story) { st.halve(st.file(expr)) } }
	rows := []repairRow{
		{"nothing amiss", func(*story) {}, "d", "b", nil, false},
		{"head ref torn: empty", ref("heads/production", ""), "b", "b", []string{tornHead + "it is empty): the head is the applied record "}, false},
		{"file or directory in a wrong place: head ref", func(st *story) { toDir(st.t, st.ref("heads/production")) }, "b", "b", []string{"a directory where refs/heads/production belongs", "the head ref is missing"}, false},
		{"head ref torn: NULs", ref("heads/production", zeros+zeros), "b", "b", []string{tornHead}, false},
		{"head ref torn: cut short", ref("heads/production", "0123456789abcdef"), "b", "b", []string{tornHead}, false},
		{"head ref missing", func(st *story) { st.remove(st.ref("heads/production")) }, "b", "b", []string{"the head ref is missing"}, false},
		{"head ref names nothing", ref("heads/production", strings.Repeat("5", 40)+"\n"), "b", "b", []string{noHead}, false},
		{"record above the applied one damaged: torn", half("production~1"), "b", "b", []string{setAside, lostHead}, false},
		{"record above the applied one damaged: missing", rm("production~1"), "b", "b", []string{lostHead}, false},
		{"record above the applied one damaged: tree missing", rm("production~1^{tree}"), "b", "b", []string{lostHead}, false},
		{"record above the applied one damaged: content torn", empty("production~1:snapshot.json"), "b", "b", []string{setAside, lostHead}, false},
		{"record above the applied one damaged: two", func(st *story) {
			head := st.file("production")
			st.remove(st.file("production~1:parameters.yaml"))
			st.write(head, zeros)
		}, "b", "b", []string{setAside, lostHead}, false},
		{"content of an old record damaged: snapshot.json missing", rm("production~3:snapshot.json"), "d", "b", nil, true},
		{"applied ref torn: empty", ref("dtesn/applied/production", ""), "d", "b", []string{noTrust}, false},
		{"applied ref torn: NULs", ref("dtesn/applied/production", zeros), "d", "b", []string{noTrust}, false},
		{"applied ref missing", func(st *story) { st.remove(st.ref("dtesn/applied/production")) }, "d", "b", []string{noApplied}, false},
		{"applied ref names nothing", ref("dtesn/applied/production", strings.Repeat("5", 40)+"\n"), "d", "b", []string{noTrust}, false},
		{"both refs lost: empty", func(st *story) {
			st.write(st.ref("heads/production"), "")
			st.write(st.ref("dtesn/applied/production"), "")
		}, "d", "b", []string{neither, noTrust}, false},
		{"both refs lost: no refs at all", func(st *story) { st.remove(st.repo("refs")) }, "d", "b", []string{"refs of the repository", neither, noApplied}, false},
		{"both refs lost: the newest record torn", func(st *story) {
			st.halve(st.file("production:snapshot.json"))
			st.write(st.ref("heads/production"), "")
			st.remove(st.ref("dtesn/applied/production"))
		}, "b", "b", []string{setAside, neither, noApplied}, false},
		{"both refs lost: applied record damaged", func(st *story) {
			st.remove(st.file("production~2:snapshot.json"))
			st.remove(st.file("production~2:parameters.yaml"))
			st.write(st.ref("heads/production"), "")
			st.remove(filepath.Join(st.dir, appliedFile))
		}, "d", "a", []string{neither, noTrust}, true},
		{"retried ref torn", ref("dtesn/retried/production", ""), "d", "b", []string{"the retried ref is torn (it is empty)"}, false},
		{"other ref torn: empty", ref("tags/mine", ""), "d", "b", []string{"the ref refs/tags/mine " + tornRef}, false},
		{"other ref torn: words", ref("tags/mine", "hello\n"), "d", "b", []string{"the ref refs/tags/mine " + tornRef}, false},
	}
	for _, object := range []struct{ name, expr string }{
		{"commit", "production"}, {"tree", "production^{tree}"}, {"snapshot.json", "production:snapshot.json"}, {"parameters.yaml", "production:parameters.yaml"},
	} {
		missing, torn, head := lostHead, lostHead, "b"
		switch object.name {
		case "commit":
			missing = noHead
		case "parameters.yaml": // snapshot.json says the same
			missing, torn, head = derived, derived, "d"
		}
		rows = append(rows,
			repairRow{"object of the head missing: " + object.name, rm(object.expr), head, "b", []string{missing}, false},
			repairRow{"object of the head torn: " + object.name + " empty", empty(object.expr), head, "b", []string{setAside, torn}, false},
			repairRow{"object of the head torn: " + object.name + " cut short", half(object.expr), head, "b", []string{setAside, torn}, false},
			repairRow{"object of the head torn: " + object.name + " another", func(st *story) {
				data, err := os.ReadFile(st.file("production~3:snapshot.json"))
				if err != nil {
					st.t.Fatal(err)
				}
				st.write(st.file(object.expr), string(data))
			}, head, "b", []string{setAside, torn}, false},
		)
	}
	return slices.Concat(rows, fileRows(), personRows(), pushRows(), notedRows(), packRows(), placeRows(), spareRows(), tailRows(), linkRows(), oddRows(), leftRows(), largeRows(), borrowRows())
}

// fileRows damage the files around refs and objects.
func fileRows() []repairRow {
	file := func(name, content string) func(*story) {
		return func(st *story) { st.write(st.repo(name), content) }
	}
	identity := func(content string) func(*story) {
		return func(st *story) { st.write(filepath.Join(st.dir, identityFile), content) }
	}
	return []repairRow{
		{"identity not that of the records: environment", identity(`{"environment": "staging", "instance": "web-1"}`), "d", "b", []string{`the file identity names environment "staging", instance "web-1"`}, false},
		{"identity not that of the records: instance", identity(`{"environment": "production", "instance": "web-2"}`), "d", "b", []string{`the file identity names environment "production", instance "web-2"`}, false},
		{"HEAD torn: empty", file("HEAD", ""), "d", "b", []string{`HEAD of the repository says ""`}, false},
		{"HEAD torn: missing", func(st *story) { st.remove(st.repo("HEAD")) }, "d", "b", []string{"HEAD of the repository is missing"}, false},
		{"HEAD torn: another branch", file("HEAD", "ref: refs/heads/master\n"), "d", "b", []string{"HEAD of the repository says"}, false},
		{"HEAD torn: large", file("HEAD", strings.Repeat("x", maxRef+1)), "d", "b", []string{"HEAD of the repository has over"}, false},
		{"config torn: empty", file("config", ""), "d", "b", []string{theConfig + "is empty: written anew"}, false},
		{"config torn: NULs", file("config", zeros), "d", "b", []string{theConfig + "cannot be used: git cannot read it"}, false},
		{"config torn: missing", func(st *story) { st.remove(st.repo("config")) }, "d", "b", []string{theConfig + "is missing"}, false},
		{"config torn: brackets", file("config", "[[[\n"), "d", "b", []string{theConfig + "cannot be used: git cannot read it: 1:2"}, false},
		{"config torn: a line behind", file("config", configText+"[[["), "d", "b", []string{theConfig + "cannot be used: git cannot read it"}, false},
		{"config torn: a key that is none", file("config", configText+"\tö = 1\n"), "d", "b", []string{theConfig + "cannot be used: git cannot read it"}, false},
		{"config torn: cut short", file("config", configText[:12]), "d", "b", []string{theConfig + "cannot be used: it does not say bare = true"}, false},
		{"config torn: not bare", file("config", strings.Replace(configText, "bare = true", "bare = perhaps", 1)), "d", "b", []string{theConfig + "cannot be used: it does not say bare"}, false},
		{"config torn: another format", file("config", strings.Replace(configText, "version = 0", "version = 2", 1)), "d", "b", []string{theConfig + `cannot be used: repositoryformatversion is "2"`}, false},
		{"config torn: another hash", file("config", strings.Replace(configText, "version = 0", "version = 1", 1)+"[extensions]\n\tobjectFormat = sha256\n"), "d", "b", []string{theConfig + "cannot be used: the repository is not one with"}, false},
		{"nothing amiss: config a person's", file("config", strings.Replace(configText, "version = 0", "version = 1", 1)+`[user]
	name = P
[alias]
	l = "!f() { echo \"$1\"; }; f"
[remote "origin"]
	url = git@example.org:x.git
[include]
	path = ~/nowhere
[extensions]
	preciousObjects = true
`), "d", "b", nil, false},
		{"stale lock", func(st *story) {
			for _, path := range []string{st.repo("HEAD.lock"), st.repo("packed-refs.lock"), st.ref("heads/production.lock"), st.repo("objects", "info", "commit-graph.lock")} {
				st.write(path, "")
				st.old(path)
			}
		}, "d", "b", []string{"a stale lock, HEAD.lock", "a stale lock, packed-refs.lock", "a stale lock, objects/info/commit-graph.lock", "a stale lock, refs/heads/production.lock"}, false},
		{"leftover of a kill: files on their way", func(st *story) {
			st.write(st.repo("tmp", "tmp-1-1"), "x")
			st.write(filepath.Join(st.dir, "tmp-1-2"), "x")
			st.write(filepath.Join(st.dir, repoDir+".new-1", "HEAD"), "x")
			st.write(st.repo("objects", "aa", "tmp_obj_x"), "x")
		}, "d", "b", nil, false},
		{"format or identity torn", func(st *story) {
			st.write(filepath.Join(st.dir, formatFile), "")
			st.write(filepath.Join(st.dir, identityFile), "")
		}, "d", "b", []string{"the file identity is torn: written anew", `the file format says "": written anew`}, false},
		{"torn object that nothing names: after a power cut", func(st *story) {
			st.write(st.repo("objects", "12", strings.Repeat("3", 38)), "")
			st.write(filepath.Join(st.dir, lockFile), "1 another-boot\n")
		}, "d", "b", []string{setAside}, false},
		{"torn object that nothing names: dated by a clock that was set back since", func(st *story) {
			path := st.repo("objects", "12", strings.Repeat("3", 38))
			st.write(path, "half")
			st.old(path)
			st.write(filepath.Join(st.dir, lockFile), "1 another-boot\n")
		}, "d", "b", []string{setAside}, false},
		{"torn object that nothing names: half a commit", func(st *story) {
			st.write(st.ref("heads/production"), st.c.Commit+"\n")
			st.remove(st.file(st.d.Commit + ":snapshot.json"))
			st.write(filepath.Join(st.dir, lockFile), "1 another-boot\n")
		}, "c", "b", nil, false},
		{"no record readable: every object empty", func(st *story) {
			st.remove(filepath.Join(st.dir, appliedFile))
			st.eachFile("objects", func(path string) { st.write(path, "") })
		}, "", "", nil, false},
		{"no record readable: every object gone", func(st *story) {
			st.remove(filepath.Join(st.dir, appliedFile))
			st.remove(st.repo("objects"))
		}, "", "", nil, false},
		{"no record readable: refs gone too", func(st *story) {
			st.remove(filepath.Join(st.dir, appliedFile))
			st.eachFile("objects", func(path string) { st.write(path, "") })
			st.remove(st.repo("refs"))
		}, "", "", nil, false},
		{"no record readable: objects and refs gone", func(st *story) {
			st.remove(st.repo("objects"))
			st.remove(st.repo("refs"))
		}, "", "", []string{"objects of the repository", "refs of the repository", replaced}, false},
		{"repository missing", func(st *story) { st.remove(st.repo()) }, "", "", []string{"the snapshot repository is gone from the state directory: the history starts anew"}, false},
		{"repository missing: identity torn", func(st *story) {
			st.remove(st.repo())
			st.write(filepath.Join(st.dir, identityFile), "")
		}, "", "", []string{"the snapshot repository is gone from the state directory: the history starts anew", "the file identity is torn"}, false},
	}
}

// personRows are what people do to a branch with git.
func personRows() []repairRow {
	const foreign = "the branch production names "
	ref := func(name string) func(*story) {
		return func(st *story) { st.write(st.ref(name), strings.Repeat("5", 40)+"\n") }
	}
	return []repairRow{
		{"foreign branch or tag: a branch", func(st *story) { st.git("branch", "mine", st.commitTree("production^{tree}")) }, "d", "b", nil, false},
		{"foreign branch or tag: a tag of ours", func(st *story) {
			st.git("-c", "user.name=P", "-c", "user.email=p@example.org", "tag", "-am", "good", "good", st.a.Commit)
		}, "d", "b", nil, false},
		{"other ref names nothing", ref("tags/mine"), "d", "b", []string{"the ref refs/tags/mine is lost"}, false},
		{"other ref names nothing: packed", func(st *story) {
			st.write(st.repo(packedRefs), strings.Repeat("5", 40)+" refs/tags/mine\n")
		}, "d", "b", []string{"the packed ref refs/tags/mine names 5555"}, false},
		{"foreign commit on the branch", func(st *story) { st.foreign("P", map[string][]byte{"note": []byte("x")}) }, "d", "b", []string{foreign}, false},
		{"foreign commit on the branch: large files", func(st *story) {
			st.foreign("P", map[string][]byte{"zeros": make([]byte, maxObject+1), "noise": noise(2*maxObject + 999)})
		}, "d", "b", []string{foreign}, false},
		{"foreign commit on the branch: in the agent's name", func(st *story) { st.foreign(agentName, map[string][]byte{snapshotFile: []byte("{}\n")}) }, "d", "b", []string{foreign}, false},
		{"foreign commit on the branch: large, in the agent's name", func(st *story) {
			st.foreign(agentName, map[string][]byte{snapshotFile: noise(2*maxObject + 999), parametersFile: make([]byte, maxObject+1)})
		}, "d", "b", []string{foreign}, false},
		{"foreign commit on the branch: large, packed", func(st *story) {
			st.foreign(agentName, map[string][]byte{snapshotFile: noise(2*maxObject + 999)})
			st.git("gc", "-q")
		}, "d", "b", []string{foreign}, false},
		{"head ref behind applied", func(st *story) { st.git("update-ref", "refs/heads/production", st.a.Commit) }, "b", "b", []string{foreign}, false},
		{"nothing amiss: branch rewound to applied", func(st *story) { st.git("update-ref", "refs/heads/production", st.b.Commit) }, "b", "b", nil, false},
		{"head ref unrelated to applied", func(st *story) {
			st.git("update-ref", "refs/heads/production", st.commitTree("production^{tree}"))
		}, "b", "b", []string{foreign}, false},
		{"applied ref unrelated to head", func(st *story) {
			st.git("update-ref", "refs/dtesn/applied/production", st.commitTree("production^{tree}"))
		}, "d", "b", []string{noTrust}, false},
		{"refs packed", func(st *story) { st.git("pack-refs", "--all") }, "d", "b", nil, false},
		{"head ref torn: packed before", func(st *story) {
			st.git("pack-refs", "--all")
			st.write(st.ref("heads/production"), "")
		}, "b", "b", []string{tornHead}, false},
		{"packed-refs torn", func(st *story) {
			st.git("pack-refs", "--all")
			st.write(st.repo(packedRefs), "")
		}, "d", "b", []string{neither, noApplied}, false},
		{"packed-refs torn: words between", func(st *story) {
			st.git("tag", "mine", st.a.Commit)
			st.git("pack-refs", "--all")
			data, err := os.ReadFile(st.repo(packedRefs))
			if err != nil {
				st.t.Fatal(err)
			}
			st.write(st.repo(packedRefs), string(data)+"[[[\n"+st.a.Commit+" refs/tags/a..b\n^"+st.a.Commit+"\n"+st.a.Commit+" refs/tags/cut")
		}, "d", "b", []string{"packed-refs has 4 lines that git cannot read"}, false},
		{"packed-refs torn: NULs", func(st *story) {
			st.git("pack-refs", "--all")
			st.write(st.repo(packedRefs), zeros)
		}, "d", "b", []string{"packed-refs has 1 line", neither, noApplied}, false},
		{"refs packed: an old retried one", func(st *story) {
			st.git("update-ref", "refs/dtesn/retried/production", st.c.Commit)
			st.git("pack-refs", "--all")
		}, "d", "b", nil, false},
	}
}

// packRows damage a repository that a gc packed.
func packRows() []repairRow {
	gc := func(then func(*story)) func(*story) {
		return func(st *story) {
			st.git("gc", "-q")
			then(st)
		}
	}
	glob := func(st *story, pattern string) string {
		paths, err := filepath.Glob(st.repo("objects", "pack", pattern))
		if err != nil || len(paths) != 1 {
			st.t.Fatal(paths, err)
		}
		return paths[0]
	}
	garbage := func(st *story, pattern string) {
		path := glob(st, pattern)
		data, err := os.ReadFile(path)
		if err != nil {
			st.t.Fatal(err)
		}
		st.write(path, string(data[:8])+strings.Repeat("\xfe", len(data)-8))
	}
	return []repairRow{
		{"gc by a person", gc(func(*story) {}), "d", "b", nil, false},
		{"both refs lost: packed", gc(func(st *story) { st.remove(st.repo(packedRefs)) }), "d", "b", []string{neither, noApplied}, false},
		{"leftover of a kill: tmp_pack, fresh", gc(func(st *story) { st.write(st.repo("objects", "pack", "tmp_pack_x"), "x") }), "d", "b", nil, false},
		{"head ref names nothing: packed", gc(func(st *story) { st.write(st.ref("heads/production"), strings.Repeat("5", 40)+"\n") }), "b", "b", []string{noHead}, false},
		{"pack torn: halved", gc(func(st *story) { st.halve(glob(st, "*.pack")) }), "b", "b", []string{thePack, spareUsed, lostHead}, true},
		{"pack torn: garbage", gc(func(st *story) { garbage(st, "*.pack") }), "b", "b", []string{thePack, spareUsed, noHead, "record 1" + isLost, "the packed ref refs/heads/production names "}, false},
		{"index torn: halved", gc(func(st *story) { st.halve(glob(st, "*.idx")) }), "d", "b", []string{thePack}, false},
		{"index torn: garbage", gc(func(st *story) { garbage(st, "*.idx") }), "d", "b", []string{thePack}, false},
		{"gc by a person: pruning", func(st *story) { st.git("gc", "-q", "--prune=now", "--aggressive") }, "d", "b", nil, false},
		{"gc by a person: repacking", func(st *story) { st.git("repack", "-adq") }, "d", "b", nil, false},
		{"leftover of a kill: tmp_pack, old", gc(func(st *story) {
			st.write(st.repo("objects", "pack", "tmp_pack_x"), "x")
			st.old(st.repo("objects", "pack", "tmp_pack_x"))
		}), "d", "b", []string{"a leftover of git, objects/pack/tmp_pack_x"}, false},
		{"leftover of a kill: half a pack", func(st *story) {
			st.git("repack", "-q") // the loose objects stay
			st.old(glob(st, "*.pack"))
			st.remove(glob(st, "*.idx"))
		}, "d", "b", nil, false},
		{"cache of git's torn: of several packs", gc(func(st *story) {
			st.git("multi-pack-index", "write")
			path := st.repo("objects", "pack", "multi-pack-index")
			data, err := os.ReadFile(path)
			if err != nil {
				st.t.Fatal(err)
			}
			st.write(path, "XXXX"+string(data[4:]))
		}), "d", "b", []string{"objects/pack/multi-pack-index, which git keeps for speed, is torn"}, false},
		{"cache of git's torn: of commits", gc(func(st *story) {
			st.git("commit-graph", "write", "--reachable")
			st.halve(st.repo("objects", "info", "commit-graph"))
		}), "d", "b", []string{"objects/info/commit-graph, which git keeps for speed, is torn"}, false},
		{"index without pack", gc(func(st *story) { st.remove(glob(st, "*.pack")) }), "b", "b", []string{"the pack of the index ", spareUsed, noHead, "record 1" + isLost, "the packed ref refs/heads/production names "}, false},
		{"no record readable: the pack is gone", gc(func(st *story) {
			st.remove(glob(st, "*.pack"))
			st.remove(filepath.Join(st.dir, appliedFile))
		}), "", "", nil, false},
		{"pack without index", gc(func(st *story) { st.old(glob(st, "*.pack")); st.remove(glob(st, "*.idx")) }), "d", "b", []string{thePack}, false},
	}
}

// placeRows put a file where a directory belongs, and the other way round.
func placeRows() []repairRow {
	const wrong = "file or directory in a wrong place: "
	dir := func(name string) func(*story) {
		return func(st *story) {
			st.remove(filepath.Join(st.dir, name))
			st.write(filepath.Join(st.dir, name, "x"), "")
		}
	}
	file := func(name string) func(*story) {
		return func(st *story) { st.remove(st.repo(name)); st.write(st.repo(name), "x") }
	}
	return []repairRow{
		{wrong + "lock", dir(lockFile), "d", "b", []string{"a directory where lock belongs"}, false},
		{wrong + "lock, a pipe", func(st *story) { st.pipe(filepath.Join(st.dir, lockFile)) }, "d", "b", []string{"a named pipe where lock belongs"}, false},
		{wrong + "lock, a link to nothing", func(st *story) {
			st.remove(filepath.Join(st.dir, lockFile))
			if err := os.Symlink("/nowhere/to/be/found", filepath.Join(st.dir, lockFile)); err != nil {
				st.t.Fatal(err)
			}
		}, "d", "b", []string{"a link to nothing where lock belongs"}, false},
		{wrong + "lock, a socket", func(st *story) {
			st.remove(filepath.Join(st.dir, lockFile))
			if err := syscall.Mknod(filepath.Join(st.dir, lockFile), syscall.S_IFSOCK|0o600, 0); err != nil {
				st.t.Fatal(err)
			}
		}, "d", "b", []string{"a socket where lock belongs"}, false},
		{wrong + "set-aside, and lock", func(st *story) {
			dir(lockFile)(st)
			st.write(filepath.Join(st.dir, setAsideDir), "x")
		}, "d", "b", []string{"a file where the directory set-aside belongs", "a directory where lock belongs"}, false},
		{wrong + "applied", dir(appliedFile), "d", "b", []string{"a directory where applied belongs"}, false},
		{wrong + "HEAD", dir(repoDir + "/HEAD"), "d", "b", []string{"a directory where HEAD belongs", "HEAD of the repository is missing"}, false},
		{wrong + "config", dir(repoDir + "/config"), "d", "b", []string{"a directory where config belongs", "config of the repository is missing"}, false},
		{wrong + "format", dir(formatFile), "d", "b", []string{"a directory where format belongs"}, false},
		{wrong + "identity", dir(identityFile), "d", "b", []string{"a directory where identity belongs"}, false},
		{wrong + "refs", file("refs"), "d", "b", []string{"a file where refs belongs", "refs of the repository is missing", neither, noApplied}, false},
		{wrong + "tmp", file("tmp"), "d", "b", []string{"a file where tmp belongs"}, false},
		{wrong + "objects", file("objects"), "b", "b", []string{"a file where objects belongs", "objects of the repository is missing", spareUsed, noHead, "record 1" + isLost}, false},
		{"object of the head torn: a directory", func(st *story) { toDir(st.t, st.file("production")) }, "b", "b", []string{setAside, lostHead}, false},
		{"shallow torn", func(st *story) { st.write(st.repo(shallowFile), zeros) }, "d", "b", []string{"the file shallow, which says where the history begins, is torn"}, false},
		{"repository a file", func(st *story) { st.remove(st.repo()); st.write(st.repo(), "x") }, "", "", []string{"a file where the snapshot repository belongs"}, false},
		{"repository a file: a link to one", func(st *story) {
			st.remove(st.repo())
			if err := os.Symlink(formatFile, st.repo()); err != nil {
				st.t.Fatal(err)
			}
		}, "", "", []string{"a file where the snapshot repository belongs"}, false},
		{"nothing amiss: the repository a link", func(st *story) {
			elsewhere := filepath.Join(filepath.Dir(st.dir), "elsewhere")
			if err := os.Rename(st.repo(), elsewhere); err != nil {
				st.t.Fatal(err)
			}
			if err := os.Symlink(elsewhere, st.repo()); err != nil {
				st.t.Fatal(err)
			}
		}, "d", "b", nil, false},
	}
}
