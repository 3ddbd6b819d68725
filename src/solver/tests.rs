//! The solver against a model of ops whose results are numbers.

mod apart;
mod explorer;
mod linear;
mod model;
mod runtime;
