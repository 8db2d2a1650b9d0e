// Package engine is the reference engine: a small, real deep tree echo state
// network (DTESN) behind the API of package dtesn, with the shapes of the DTESN
// server's own documentation.
//
// # The network
//
// esn_reservoir_size leaky tanh units stand in a tree of membranes,
// max_membrane_depth levels deep, each level with its own leak rate and at
// least 32 units. The input reaches the outermost membrane; each inner one is
// fed by the one around it. The recurrent weights are sparse and scaled to a
// spectral radius. Between two samples the state follows the units' ODE, by a
// B-series truncated at bseries_max_order. A readout, fitted by ridge regression
// to a Mackey-Glass series, says the next sample from 1024 units at most. POST
// /v1/process drives the network with a series and lets it run on by itself.
//
// Larger networks predict better, by less and less: beyond 2048 units the series
// that the readout was fitted to is the limit. Higher orders predict better up
// to 8; from there on what the series leaves out no longer shows. Orders 1 and 2
// are for those who want to see that they are not enough.
//
// # Changes
//
// Everything that a request can see (parameters, network, generation, label,
// history) is one immutable value behind an atomic pointer: reads take no lock
// and never see a part of a change. Updates are serialised. A change of a
// critical parameter builds the new network beside the old one, trains it, and
// swaps; requests in flight finish on the old one. The rebuild takes turns with
// requests on the processors, so that it neither holds them up nor starves.
//
// The engine accepts the parameters of the schema that the program ships and the
// labels of its environments. An agent with a further environment (--schema)
// needs one of these labels for it.
//
// # Memory
//
// What is accounted is what the networks that live take, with all their
// workspaces, and a constant for the cache, full, and the history. While a
// rebuild is under way two networks live, and the training takes its share; all
// count: a change that does not fit beside what runs is refused with 200 and
// success false, the reason says what would fit, and nothing changes.
package engine
