package gitstore

import (
	"path/filepath"
	"slices"
)

// pushRows are commits of a person on the refs that are the agent's alone.
func pushRows() []repairRow {
	const foreign = "the branch production names "
	const applied, retried = "refs/dtesn/applied/production", "refs/dtesn/retried/production"
	push := func(committer string, refs ...string) func(*story) {
		return func(st *story) {
			head := st.d.Commit
			st.foreign(committer, map[string][]byte{"note": []byte("x")})
			for _, ref := range refs {
				st.git("update-ref", ref, "refs/heads/production")
			}
			if !slices.Contains(refs, "refs/heads/production") {
				st.git("update-ref", "refs/heads/production", head)
			}
		}
	}
	tag := func(refs ...string) func(*story) {
		return func(st *story) {
			st.git("-c", "user.name=P", "-c", "user.email=p@example.org", "tag", "-am", "by hand", "mine", st.a.Commit)
			name := st.git("rev-parse", "refs/tags/mine")
			st.git("tag", "-d", "mine")
			for _, ref := range refs {
				st.write(st.repo(ref), name+"\n")
			}
		}
	}
	return []repairRow{
		{"foreign commit on the branch: on the applied ref too", push("P", "refs/heads/production", applied), "d", "b", []string{neither, noTrust}, false},
		{"foreign commit on the branch: on all three refs, in the agent's name", push(agentName, "refs/heads/production", applied, retried), "d", "b", []string{neither, noTrust, oldRetried}, false},
		{"foreign commit on the branch: on a record that is lost", func(st *story) {
			push("P", "refs/heads/production")(st)
			st.remove(st.repo("objects", st.c.Commit[:2], st.c.Commit[2:]))
		}, "b", "b", []string{foreign}, false},
		{"foreign commit on the branch: a tag", tag("refs/heads/production"), "b", "b", []string{foreign}, false},
		{"applied ref unrelated to head: a foreign commit above it", push("P", applied), "d", "b", []string{noTrust}, false},
		{"applied ref unrelated to head: a tag", tag(applied), "d", "b", []string{noTrust}, false},
		{"retried ref unrelated to head: a foreign commit", push("P", retried), "d", "b", []string{oldRetried}, false},
		{"retried ref unrelated to head: a tag", tag(retried), "d", "b", []string{oldRetried}, false},
		{"retried ref unrelated to head: a candidate that was given up", func(st *story) {
			st.git("update-ref", retried, st.d.Commit)
			st.write(st.ref("heads/production"), "")
		}, "b", "b", []string{tornHead, oldRetried}, false},
	}
}

// notedRows are about the record that the state directory notes as applied.
func notedRows() []repairRow {
	note := func(content string) func(*story) {
		return func(st *story) { st.write(filepath.Join(st.dir, appliedFile), content) }
	}
	// confirmed has d applied, and then the damage.
	confirmed := func(damage ...func(*story)) func(*story) {
		return func(st *story) {
			s, _ := st.open()
			confirm(st.t, s)
			if err := s.Close(); err != nil {
				st.t.Fatal(err)
			}
			for _, do := range damage {
				do(st)
			}
		}
	}
	empty := func(name string) func(*story) { return func(st *story) { st.write(st.ref(name), "") } }
	const headAt, appliedAt = "heads/production", "dtesn/applied/production"
	return []repairRow{
		{"applied ref missing: the head was noted", confirmed(func(st *story) { st.remove(st.ref(appliedAt)) }), "d", "d", []string{noApplied}, false},
		{"applied ref torn: the head was noted", confirmed(empty(appliedAt)), "d", "d", []string{noTrust}, false},
		{"both refs lost: the head was noted", confirmed(empty(appliedAt), empty(headAt)), "d", "d", []string{neither, noTrust}, false},
		{"both refs lost: the head was noted, and a person pushed", confirmed(func(st *story) {
			st.foreign("P", map[string][]byte{"note": []byte("x")})
			st.git("update-ref", "refs/"+appliedAt, "refs/"+headAt)
		}), "d", "d", []string{neither, noTrust}, false},
		{"both refs lost: the note is torn", confirmed(empty(appliedAt), empty(headAt), note(zeros)), "d", "b", []string{neither, noTrust}, false},
		{"both refs lost: the note names an older record", confirmed(empty(appliedAt), empty(headAt), func(st *story) { note(st.a.Commit + " " + st.a.ID + "\n")(st) }), "d", "b", []string{neither, noTrust}, false},
		{"both refs lost: the newest record too, and the one before was noted", confirmed(func(st *story) {
			s, _ := st.open()
			e := applied(st.t, s, 64)
			if err := s.Close(); err != nil {
				st.t.Fatal(err)
			}
			st.remove(st.file("production"))
			note(e.Commit + " " + e.ID + "\n" + st.d.Commit + " " + st.d.ID + "\n\n")(st)
		}), "d", "d", []string{neither, noTrust}, false},
		{"both refs lost: the newest record too, and the note before is torn", confirmed(func(st *story) {
			s, _ := st.open()
			e := applied(st.t, s, 64)
			if err := s.Close(); err != nil {
				st.t.Fatal(err)
			}
			st.remove(st.file("production"))
			note(e.Commit + " " + e.ID + "\n" + st.d.Commit[:20] + "\n\n")(st)
		}), "d", "b", []string{neither, noTrust}, false},
		{"head ref torn: only an older one in packed-refs", confirmed(func(st *story) {
			st.git("update-ref", "refs/"+headAt, st.b.Commit)
			st.git("pack-refs", "--all")
			st.git("update-ref", "refs/"+headAt, st.d.Commit)
			st.git("update-ref", "refs/"+appliedAt, st.d.Commit)
			st.remove(st.ref(headAt))
		}), "d", "d", []string{tornHead + "only packed-refs has an older value)"}, false},
		{"applied ref torn: only an older one in packed-refs", func(st *story) {
			st.git("pack-refs", "--all")
			confirmed()(st)
			st.remove(st.ref(appliedAt))
		}, "d", "d", []string{noTrust}, false},
		{"both refs lost: only older ones in packed-refs", func(st *story) {
			st.git("update-ref", "refs/"+headAt, st.b.Commit)
			st.git("pack-refs", "--all")
			st.git("update-ref", "refs/"+headAt, st.d.Commit)
			confirmed()(st)
			st.remove(st.repo("refs"))
		}, "d", "d", []string{"refs of the repository is missing", neither, noTrust}, false},
		{"record above the applied one damaged: and the applied ref lost", func(st *story) {
			st.remove(st.file("production~1"))
			st.remove(st.ref(appliedAt))
		}, "b", "b", []string{noApplied, lostHead}, false},
		{"record above the applied one damaged: its content, and the applied ref lost", func(st *story) {
			st.remove(st.file("production~1^{tree}"))
			st.remove(st.ref(appliedAt))
			st.remove(filepath.Join(st.dir, appliedFile))
		}, "b", "b", []string{noApplied, lostHead}, false},
		{"content of an old record damaged: above the applied one that is found again", func(st *story) {
			st.remove(st.file("production~2:snapshot.json"))
			st.remove(filepath.Join(st.dir, appliedFile))
			st.write(st.ref(appliedAt), "")
			st.remove(st.ref(headAt))
		}, "d", "a", []string{neither, noTrust}, true},
		{"both refs lost: packed, and a torn object", func(st *story) {
			st.git("pack-refs", "--all")
			st.write(st.repo(packedRefs), "")
			st.halve(st.repo("objects", st.d.Commit[:2], st.d.Commit[2:]))
		}, "c", "b", []string{setAside, neither, noApplied}, false},
		{"nothing amiss: the note is missing", func(st *story) { st.remove(filepath.Join(st.dir, appliedFile)) }, "d", "b", nil, false},
		{"nothing amiss: the note is torn", note(zeros), "d", "b", nil, false},
		{"history not the one that was applied: a backup", confirmed(func(st *story) {
			st.git("update-ref", "refs/"+headAt, st.b.Commit)
			st.git("update-ref", "refs/"+appliedAt, st.b.Commit)
		}), "b", "b", []string{replaced}, false},
		{"history not the one that was applied: begun anew, untold", func(st *story) {
			st.remove(st.repo())
			s, _ := st.open()
			if err := s.Close(); err != nil {
				st.t.Fatal(err)
			}
		}, "", "", []string{replaced}, false},
	}
}
