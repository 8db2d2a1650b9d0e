// Package gitstore is the history: every state that was ever to be sent to the
// engine is a record, durable before anything is said of it, and a git commit that
// people read.
//
// # The journal is the truth, git its projection
//
//	<state>/format                "2"; a newer one is refused; written last
//	<state>/identity              whose directory it is
//	<state>/lock                  flock of the one writer; "stopped" and the head after a clean stop, else it was killed
//	<state>/journal.0, journal.1  the newest records and marks, see journal.go
//	<state>/set-aside/            what could not be used
//	<state>/snapshots.git/
//	    refs/heads/<env>              the head: the newest record
//	    refs/dtesn/applied/<env>      the newest record known to run
//	    refs/dtesn/set-aside/<time>   commits of others found on the branch
//	    dtesn-agent                   which repository the journal is about
//	    shallow                       where the history begins, once it was pruned
//
// A commit's tree is parameters.yaml and snapshot.json (the whole record); its
// last paragraph is trailers, written by this package alone. Records are read by
// name, from snapshot.json: parameters that today's schema lacks are kept and
// shown. parameters.yaml is a rendering for people.
//
// Once Commit returned, a kill cannot lose the record; once Confirm, or the Commit
// of a revert or a note, returned, a power cut cannot. One fdatasync of the
// journal does that. The repository gets objects and refs afterwards, unsynced, and
// never what the journal does not have durably. So after a power cut plain git may
// be torn until the next start, which writes again what the journal has. While the
// repository cannot be written (a full disk) the journal goes on, and Behind
// returns why.
//
// After checkpointRecords records they are packed, and the journal begins a new
// segment without them (checkpoint.go). With Options.KeepSnapshots Prepare drops the
// oldest packs.
//
// # What Open finds, and does
//
// TestFound and person_test.go have them.
//
//	refs, HEAD, config or objects of the newest records missing, torn, moved    written again
//	something else in the place of a file or a directory of the repository    Behind returns it, until it is gone
//	packed-refs or shallow that git cannot read     the lines that it can read stay
//	a commit that is no record, on the branch       kept below refs/dtesn/set-aside
//	another repository (its marker differs)         taken as it is; pause and hold are carried over; set aside if its refs are not whole
//	repository missing, or without what the newest records stand on    begun anew from the journal
//	whole records above the journal's head          taken in: the journal was damaged, or a backup was made while the agent ran
//	journal with an unfinished end                  cut; nobody was told
//	a file of the journal removed or cut while the agent runs    both are written again
//	journal damaged, or missing                     it goes on from the refs; paused if newer records may be lost
//	format 1                                        upgraded: the journal begins with what the refs name
//	neither journal nor refs                        a new history, paused until ClearLost, see Lost
//	a directory without the file format             new; not paused
//
// That is all the repair there is. A gap in the older history, which only git has,
// does not heal: List ends there with an error. A file of the journal that is missing,
// short or empty at a start is damage: both hold a segment from the first start on.
//
// # Who may do what
//
// A Store is the one writer: it holds the lock. Before it writes it looks whether
// the path still leads to that lock and to the repository of its marker; a
// directory that was unmounted is let go, and read anew when it is back. A Reader
// takes no lock, works beside a Store of any process and without one, and is safe
// for concurrent use.
package gitstore
