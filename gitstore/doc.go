// Package gitstore is the snapshot repository: a bare git repository in which
// every state that was ever to be sent to the engine is a commit, readable with
// plain git, and durable before anything is said of it.
//
// # What lies where
//
//	<state>/format           "1"; a newer one is refused; written last
//	<state>/identity         environment and instance the directory belongs to
//	<state>/lock             flock of the one writer; holds its pid
//	<state>/lost             there was a history of which nothing can be read
//	<state>/reserve          1 MiB, given up by slices for reverts on a full disk
//	<state>/set-aside/       what was found damaged, under names that say why
//	<state>/walked           down to where the history needs no second walk; where it begins
//	<state>/applied          what the applied ref names, noted once more, and named before;
//	                         behind that the objects of the applied record, a second time
//	<state>/snapshots.git/
//	    refs/heads/<env>                 the head: the newest record
//	    refs/dtesn/applied/<env>         the newest record known to run, durably
//	    refs/dtesn/retried/<env>         the candidate that is being sent again
//	    refs/dtesn/set-aside/<time>      foreign commits found on the branch
//	    tmp/                             files on their way to another place
//
// A commit's tree is parameters.yaml and snapshot.json (the whole record); its
// last paragraph is trailers, written by this package alone. Records are read by
// name, from snapshot.json: parameters that today's schema lacks are kept and
// shown. parameters.yaml is a rendering for people.
//
// # The two promises
//
// Once Commit returned, a kill of the process cannot lose the record: its four
// objects and the ref are written, each by a rename, but not synced. Once
// Confirm, or the Commit of a revert or a note (which an operator is answered at
// once), returned, a power cut cannot lose it: objects and their directories are
// synced first, then the ref that vouches for them is renamed into place, then
// its directory is synced. So whatever
// refs/dtesn/applied names is whole, and a head that is not whole is a
// candidate that nobody was told of.
//
// # What is found at open, and what is done
//
// Open looks before it trusts. Each line below has a test of its name (TestFound
// compares the two), and what was done is in the log and in `agent status`.
// "Kept" is below <state>/set-aside, or a ref refs/dtesn/set-aside/….
//
//	nothing amiss                            nothing
//	head ref missing                         the head is the applied record
//	head ref torn                            the same
//	head ref names nothing                   the same
//	head ref behind applied                  the same; what it named is kept
//	head ref unrelated to applied            the same; what it named is kept
//	object of the head missing               the same: it was a candidate; its commit is kept; but parameters.yaml is made anew from snapshot.json
//	object of the head torn                  the same; the torn file is kept
//	record above the applied one damaged     the same
//	foreign commit on the branch             kept; the head is the newest record below it
//	foreign branch or tag                    left alone
//	applied ref missing                      it names the head, if that was noted; else the newest record that another followed and did not gainsay
//	applied ref torn                         the same
//	applied ref names nothing                the same
//	applied ref unrelated to head            the same; what it named is kept
//	applied record damaged                   made whole again, from its second copy in the file applied
//	no second copy of the applied record     remade upon the newest whole record, with its Parameters as far as its commit, kind and files say them; what bore a hold holds all
//	settlement at the head damaged           the same: a revert or a note was no candidate
//	both refs lost                           the newest whole record that did not come to nothing is the head; applied as above
//	no record readable                       the repository is kept, the history starts anew; it is lost, see below
//	history not the one that was applied     taken as it is, and told
//	content of an old record damaged         listed as damaged; no rollback goes to it
//	gap in the history                       the history begins above it, by git's file shallow; what is whole below is kept
//	shallow torn                             kept; made anew from a walk
//	shallow hides what is there              the line is removed; those of other histories stay
//	retried ref torn                         removed
//	retried ref unrelated to head            removed; what it named is kept, unless the history has it
//	other ref torn                           kept
//	other ref names nothing                  kept
//	refs packed                              read from packed-refs
//	packed-refs torn                         kept; made anew from the lines that are whole; the rest as for the refs that stood there
//	HEAD torn                                written anew; also a missing one, or one that names another branch
//	config torn                              kept; written anew; also one of another kind of repository; a person's is left alone
//	stale lock                               removed, if dated a minute ago or ahead: git holds one for milliseconds
//	lock that another holds                  waited for, a second; a packed ref that was to be removed stays
//	leftover of a kill                       removed: tmp-*, snapshots.git.new-*, half a pack; tmp_* of git's, if an hour old
//	pack half removed                        removed, if all of it reads back from elsewhere; else it stays
//	bytes behind the end of an object        kept; written anew without them, at the head, the applied record, and commits that the walk meets; else the record is listed as damaged
//	torn object that nothing names           kept apart, after a power cut
//	gc by a person                           nothing
//	index torn                               kept; made anew from the pack
//	pack without index                       the index is made anew
//	index without pack                       kept
//	pack torn                                kept; what can be read of it, and from nowhere else, is packed anew
//	cache of git's torn                      kept: multi-pack-index, commit-graph
//	objects borrowed                         taken in, if git's alternates name them all; else refused: mount what those name
//	file or directory in a wrong place       kept; made anew
//	file too large                           kept; as if it were missing
//	name set-aside taken                     what has it is kept under another
//	repository missing                       the history starts anew; it is lost, see below
//	repository a file                        kept; the same
//	repository a link to nothing             refused: the disk with the history is not mounted
//	format or identity torn                  written anew
//	identity not that of the records         written anew, where the records and the settings agree
//	format newer                             refused: upgrade the agent
//	another environment or instance          refused: choose another --state
//	state directory a file                   refused
//	not readable or writable                 refused: chown it
//	read-only file system                    refused: mount it writable
//	disk full                                opened; a repair may use the reserve
//	reserve missing                          made again, as large as the disk allows
//
// A named pipe, a socket, a device, a link to itself, and where a directory belongs
// a link to nothing, count as a file in a wrong place (but objects and refs may be
// on a disk that is not mounted: then the start is refused). None of them is
// never waited for; found later, while the Store is open, it holds nothing, like
// a torn file.
//
// # When nothing can be read
//
// Where there was a history (the file format or identity is there, or a Store had
// it open) and no record of it can be read, what an operator held and paused is
// not known. The file lost says so before anything else is changed, and Lost
// returns a pause, over restarts, until ClearLost. It ends by itself when a start
// finds a head: somebody put the history back. A directory without those files is
// new; a whole repository in which nothing was recorded is empty, and so is one
// that cannot have had more than a first record, never confirmed, which a power
// cut took. None of these is lost.
//
// # When the directory goes away
//
// Before anything is written a Store looks whether the path still leads to the
// lock it holds. If not (the disk was unmounted, to be repaired; the directory was
// moved or replaced), it closes all that it has there, so that the disk is free,
// and writes nothing until a history lies there again; that is locked, repaired
// and read as at Open. A repository that was replaced in its place, or whose refs
// somebody else moved, is read anew too; what was left behind is told, then and at
// the next start.
//
// # How it stays small
//
// After each packEvery records the loose objects are put into a pack, beside the
// writer, and packs of one size are joined when there are packFan of them. A
// pack and its index are durable under their names before anything that is in
// them is removed. No git binary takes part.
//
// # How it is pruned
//
// With Options.KeepSnapshots the oldest records go, at packing time: never one
// of the newest so many, never the applied one, nor the one that a rollback
// without an id goes to. The oldest that is left stands in git's own file
// shallow, so that `git log` ends there, and `git fsck` and `git clone` are
// content. That file is durable before anything is removed. Numbers go on, for
// the sequence never restarts; the total counts what is there. A record that
// another ref names stays, by itself; so does what a HEAD, an index, a reflog or
// any other file of the repository names. Nothing goes that was not a part of such
// a record: what a person made stays, named or not. A pack that holds something
// over 1 MiB is never rewritten, and stays whole. While a ref names a tree, a
// commit or a tag of that size, nothing is pruned.
//
// # A git gc beside a running agent
//
// With --prune=now it removes what no ref named when it began, even much later,
// when a record that was made meanwhile is long confirmed. So what was synced in
// the last minutes, up to 8 MiB, is kept in memory until it is packed, and looked
// at by each Commit, Confirm, Prepare and Probe; what is gone is written again,
// durably, and told. Refs of ours that are lost or set back are put back as well.
// Damage that packing meets is mended by the next Probe, as a start would.
//
// # Who may do what
//
// A Store is the one writer: it holds the lock, and its methods are called from
// one goroutine at a time. A Reader takes no lock, works beside a Store of any
// process and without one, and is safe for concurrent use.
//
// Objects, commits and trees are encoded and decoded with go-git's plumbing.
// Files and refs are read and written by this package itself: go-git neither
// syncs nor renames them, takes an empty ref for a new branch, and never heals
// a torn object.
package gitstore
