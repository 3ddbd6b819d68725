//! Jobs that were told different things of one source.

use std::sync::Arc;

use crate::oci::Descriptor;
use crate::oci::Digest;
use crate::oci::Platform;
use crate::ops::Edge;
use crate::ops::Graph;
use crate::ops::ImageSource;
use crate::ops::Merge;
use crate::ops::Named;
use crate::ops::Op;
use crate::ops::Vertex;
use crate::ops::VertexDigest;
use crate::ops::VertexOptions;
use crate::progress::Journal;
use crate::session::Sessions;
use crate::solver::event::Event;
use crate::solver::event::Interest;
use crate::solver::event::JobNumber;
use crate::solver::scheduler::Scheduler;
use crate::solver::state::NodeId;
use crate::task::Tasks;

/// An image, and what is made of it: `told` is what a job knows of the image.
fn graph(told: Option<&str>) -> Graph {
    let image = ImageSource::new("r.test/app:v1".parse().unwrap());
    if let Some(told) = told {
        image.named.keep(Named::of_registry(Descriptor::of("application/x", told.as_bytes())));
    }
    let vertex = |name: &str, op: Op, inputs: Vec<Edge>| {
        Arc::new(Vertex {
            digest: VertexDigest(Digest::sha256(name)),
            name: name.into(),
            op,
            platform: Platform::host(),
            inputs,
            options: VertexOptions::default(),
        })
    };
    let edge = |vertex: &Vertex| Edge { vertex: vertex.digest, output: 0 };
    let source = vertex("source", Op::Image(image), Vec::new());
    let step = vertex("step", Op::Merge(Merge { inputs: vec![0] }), vec![edge(&source)]);
    let top = vertex("top", Op::Merge(Merge { inputs: vec![0] }), vec![edge(&step)]);
    let result = edge(&top);
    Graph::new(vec![source, step, top], result)
}

fn load(scheduler: &mut Scheduler<u64>, job: u64, told: Option<&str>) -> usize {
    let interest = Interest { job: JobNumber(job), sessions: Vec::new(), journal: Journal::new() };
    scheduler.apply([Event::Load { interest: Arc::new(interest), graph: graph(told) }]);
    (0..1_000).filter(|id| scheduler.nodes.get(NodeId(*id)).is_some()).count()
}

#[test]
fn a_job_shares_what_comes_of_a_source_with_those_who_were_told_the_same_or_nothing() {
    let mut scheduler = Scheduler::new(Sessions::new(&Tasks::new()), Arc::new(|result, _| result));
    let mut load = |job, told| load(&mut scheduler, job, told);
    assert_eq!(load(1, None), 3);
    assert_eq!(load(2, None), 3, "nobody was told anything");
    assert_eq!(load(3, Some("first")), 6, "the others may have something else");
    assert_eq!(load(4, Some("first")), 6);
    assert_eq!(load(5, Some("second")), 9);
    assert_eq!(load(6, None), 9);
    assert_eq!(load(5, Some("second")), 9, "once more");
    for job in 1..=6 {
        scheduler.apply([Event::Leave { job: JobNumber(job) }]);
    }
    assert!(scheduler.is_empty());
}

/// What was made of the source for a job that has it no longer by its name is not taken for what another was told.
#[test]
fn what_is_found_by_its_name_is_of_the_source_that_is_meant() {
    let mut scheduler = Scheduler::new(Sessions::new(&Tasks::new()), Arc::new(|result, _| result));
    let source_alone = |told| {
        let graph = graph(told);
        let source = Arc::clone(graph.inputs_first().next().unwrap());
        let result = Edge { vertex: source.digest, output: 0 };
        Graph::new(vec![source], result)
    };
    assert_eq!(load(&mut scheduler, 1, Some("first")), 3);
    let interest = Interest { job: JobNumber(2), sessions: Vec::new(), journal: Journal::new() };
    scheduler.apply([Event::Load { interest: Arc::new(interest), graph: source_alone(Some("second")) }]);
    scheduler.apply([Event::Leave { job: JobNumber(2) }]);
    assert_eq!(load(&mut scheduler, 3, Some("third")), 6);
    for job in [1, 3] {
        scheduler.apply([Event::Leave { job: JobNumber(job) }]);
    }
    assert!(scheduler.is_empty());
}
