//! The solver against a model of ops whose results are numbers.

mod explorer;
mod linear;
mod model;
mod runtime;
