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
// B-series truncated at bseries_max_order. A readout, fitted by ridge
// regression to a Mackey-Glass series, says the next sample from 192 units at
// most: larger networks predict better on average, by less and less. POST
// /v1/process drives the network with a series and lets it run on by itself.
//
// # Changes
//
// Everything that a request can see (parameters, network, generation, label,
// history) is one immutable value behind an atomic pointer: reads take no lock
// and never see a part of a change. Updates are serialised. A change of a
// critical parameter builds the new network beside the old one and swaps;
// requests in flight finish on the old one. If the old one had requests, the
// readout of the new one is trained before the swap, so that traffic never
// waits; else it is trained by the first request.
//
// # Memory
//
// What is accounted is what the networks that live take, with all their
// workspaces, and a constant for training and cache. While a rebuild is under
// way two networks live, and both count: a change that does not fit beside
// what runs is refused with 200 and success false, and nothing changes.
package engine
