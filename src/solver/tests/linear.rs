//! Time and memory grow linearly with vertices and edges: steps of the scheduler are counted, not
//! seconds.

use super::explorer::World;
use super::model::Plan;

/// Steps and tasks at the same time of a first build, and steps of a second one that finds everything.
fn cost(plan: &Plan) -> (u64, usize, u64) {
    let mut world = World::new(0);
    let top = plan.vertices.len() - 1;
    let (mut steps, mut costs) = (0, [0, 0]);
    for (job, cost) in (1..).zip(&mut costs) {
        world.load(plan, job, "", top, 0);
        world.want(plan, job, job, "", top, 0);
        world.drain();
        world.leave(job);
        *cost = world.scheduler.steps() - steps;
        steps = world.scheduler.steps();
    }
    assert_eq!(world.runs, plan.vertices.len(), "each op runs once, in the first build");
    assert!(world.scheduler.is_empty());
    (costs[0], world.max_pending, costs[1])
}

fn size(plan: &Plan) -> u64 {
    plan.vertices.iter().map(|v| 1 + v.inputs.len() as u64).sum()
}

fn chain(length: usize) -> Plan {
    let mut plan = Plan::default();
    let mut top = plan.root("root");
    for n in 1..length {
        top = plan.op(&format!("op {n}"), &[top]);
    }
    plan
}

fn wide(width: usize) -> Plan {
    let mut plan = Plan::default();
    let roots: Vec<usize> = (0..width).map(|n| plan.root(&format!("root {n}"))).collect();
    plan.op("top", &roots);
    plan
}

fn diamonds(depth: usize) -> Plan {
    let mut plan = Plan::default();
    let mut top = plan.root("root");
    for n in 0..depth {
        let (left, right) = (plan.op(&format!("left {n}"), &[top]), plan.op(&format!("right {n}"), &[top]));
        top = plan.op(&format!("join {n}"), &[left, right]);
    }
    plan
}

fn hashed(depth: usize) -> Plan {
    let mut plan = Plan::default();
    let mut top = plan.root("root");
    for n in 0..depth {
        top = plan.copy(&format!("copy {n}"), &[top, top]);
    }
    plan
}

#[test]
fn steps_are_bounded_by_vertices_and_edges_whatever_the_shape() {
    for plan in [
        chain(10),
        chain(100),
        chain(1_000),
        wide(10),
        wide(1_000),
        diamonds(30),
        diamonds(60),
        diamonds(300),
        hashed(60),
    ] {
        let (first, _, second) = cost(&plan);
        let size = size(&plan);
        assert!(first <= 40 * size, "{first} steps for a first build of {size}");
        assert!(second <= 20 * size, "{second} steps for a second build of {size}");
    }
}

#[test]
fn what_is_wide_runs_at_the_same_time() {
    let (_, most, _) = cost(&wide(1_000));
    assert!(most >= 1_000, "only {most} at the same time");
}

#[test]
fn a_chain_of_10_000_needs_no_stack() {
    let (first, _, _) = cost(&chain(10_000));
    assert!(first <= 40 * 20_000);
}
