// Package watcher holds the sources of Documents: whatever has a team's
// configuration files, and says when they changed: Files, a directory, and Git,
// the commits of a repository. What every source offers its consumer is Sink.
//
// # Reading
//
// Read takes base.yaml, the environment's file and the templates that file
// extends. It is bounded (one byte more than schema.MaxFileBytes a file, and no
// further file once they exceed schema.MaxDocumentBytes), never leaves the
// directory, never waits for a writer, and repeats until two passes saw the
// same bytes. Files reads once at a time, and takes what it read by the rules
// below. What may not be read as a configuration file, such as a
// link out or a named pipe, is in the Document with the reason (File.Refused);
// what could not be read (permissions, disk) is an error and no Document.
//
// # When a change is taken
//
// A rename onto the environment's file is whole by nature and taken at once.
// Every other change may be half of a write, even when what is there already
// is valid YAML; it is taken when one of these holds:
//
//   - two readings at least FilesOptions.Settle apart saw the same bytes, and
//     the files were not written in between, by their times and by inotify. A
//     touch, which inotify tells from a write, does not count;
//   - it is the first reading, and nothing was changed within Settle.
//
// The first of the two readings is taken right after the last event, so that
// a change is delivered little more than one Settle after it was made.
//
// So no part of an in-place write is delivered while its parts are at most
// Settle apart. A file that is rewritten without such a pause is no state:
// nothing is delivered, and after twenty times Settle the sink is told.
//
// # Two kinds of hints, one truth
//
// The truth is the bytes, read each Resync and compared. inotify makes it
// quick. It watches directories, never files: the configuration directory,
// templates/, and the directory of every link on the way to them (git-sync
// swaps a link above the directory, the kubelet one inside). Its events only
// wake the loop, but for two things that only the kernel knows and fsnotify does
// not pass on: whether a file was created or renamed into place, and that
// nothing has happened up to the end of a reading.
//
// Of a mount, and of a directory above that is renamed, inotify says nothing:
// once a second the way to the files is walked again, which costs a few lstat.
//
// Where inotify cannot be had (its limits, or the process's), or cannot be
// trusted (network file systems, FUSE, a file that is a mount of its own), the
// files are read once a second instead: mode "poll". inotify is tried again
// each time, so that its mode comes back by itself.
//
// # A git repository
//
// Git delivers the tree of the commit that a ref names: no work tree, no
// settling. A remote repository is asked each Poll. Of one on this machine
// fsnotify watches the directories of the ref, and of the one that it leads to
// (HEAD); once a second the way there is walked again, so that a repository
// that comes later, or whose directories are replaced, is watched from then
// on. While it cannot be watched it is looked at once a second: mode "poll".
//
// What keeps a commit from being taken is said in one of three ways. An error,
// and no Document: the repository cannot be read now; it is tried again, after a
// second at first, then ever more rarely. Document.Refused: the commit cannot be
// trusted. File.Refused: the commit has something else in place of a file.
package watcher
