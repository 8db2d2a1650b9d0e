// Package gitstore is the snapshot repository: a bare git repository in which
// every state that was ever to be sent to the engine is a commit, readable with
// plain git, and durable before anything is said of it.
//
// # What lies where
//
//	<state>/format           "1"; a newer one is refused
//	<state>/identity         environment and instance the directory belongs to
//	<state>/lock             flock of the one writer; holds its pid
//	<state>/reserve          1 MiB, given up for reverts on a full disk
//	<state>/set-aside/       what was found damaged, under names that say why
//	<state>/snapshots.git/
//	    refs/heads/<env>                 the head: the newest record
//	    refs/dtesn/applied/<env>         the newest record known to run, durably
//	    refs/dtesn/retried/<env>         the candidate that is being sent again
//	    refs/dtesn/set-aside/<time>      foreign commits found on the branch
//	    tmp/                             files on their way to another place
//
// A commit's tree is parameters.yaml (canonical) and snapshot.json (the whole
// record); its last paragraph is trailers, written by this package alone.
//
// # The two promises
//
// Once Commit returned, a kill of the process cannot lose the record: its four
// objects and the ref are written, each by a rename, but not synced. Once
// Confirm, or the Commit of a revert, returned, a power cut cannot lose it:
// objects and their directories are synced first, then the ref that vouches
// for them is renamed into place, then its directory is synced. So whatever
// refs/dtesn/applied names is whole, and a head that is not whole is a
// candidate that nobody was told of.
//
// # How it stays small
//
// After each packEvery records the loose objects are put into a pack, beside the
// writer, and packs of one size are joined when there are packFan of them. A
// pack and its index are durable under their names before anything that is in
// them is removed. No git binary takes part.
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
