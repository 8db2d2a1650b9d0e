// Package watcher holds the sources of Documents, which read a team's
// configuration files and report when they changed: Files, a directory, and Git,
// the commits of a repository. Both report to a Sink.
//
// # Reading
//
// A reading takes base.yaml, the environment's file and the templates that file
// extends. It is bounded (one byte more than schema.MaxFileBytes a file, and no
// further file once they exceed schema.MaxDocumentBytes), never leaves the
// directory and never waits for a writer. What may not be read as a configuration file, such as a link out or
// a named pipe, is in the Document with the reason (File.Refused); what could not
// be read (permissions, disk) is an error and no Document.
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
//   - it is the first reading, and nothing was changed within Settle;
//   - files were renamed into place for a second without a pause, and none was
//     written within Settle.
//
// So no part of an in-place write is delivered while its parts are at most
// Settle apart. A file that is rewritten without such a pause is not delivered,
// and after twenty times Settle the sink is told, once.
//
// # Stat passes and inotify
//
// Once a second everything on the way to the files is statted, and a difference
// leads to a reading; each Resync they are read in any case. inotify makes it
// quick. It watches the configuration directory, templates/ and the directory of
// every link on the way (git-sync swaps a link above the directory, the kubelet
// one inside). Two things are known to the kernel alone, and fsnotify does not
// pass them on: whether a file was created or renamed into place, and that
// nothing has happened up to the end of a reading.
//
// Where inotify is not available or cannot be relied on (network file systems,
// FUSE, a file that is a mount of its own), the files are read once a second:
// mode "poll". inotify is tried again each time.
//
// # A git repository
//
// Git delivers the tree of the commit that a ref names: no work tree, no
// settling. A remote repository is asked each Poll. The files of a local
// repository's refs are statted once a second, and fsnotify watches their
// directories. While it cannot, the repository is read once a second: mode "poll".
//
// What keeps a commit from being taken is reported in one of three ways. An
// error, and no Document: the repository cannot be read now; it is tried again,
// after a second at first, then ever more rarely. Document.Refused: the commit is
// not trusted. File.Refused: the commit has something else in place of a file.
package watcher
