use std::sync::Arc;

use crate::ops::Lineage;
use crate::ops::Vertex;
use crate::progress::Fanout;
use crate::progress::VertexProgress;
use crate::session::SessionGroup;

/// What an effect needs of the vertex it works for.
pub struct Shell {
    pub vertex: Arc<Vertex>,
    /// Those of the jobs that have the vertex; they come and go.
    pub sessions: SessionGroup,
    pub fanout: Fanout,
    pub progress: VertexProgress,
    pub lineage: Arc<Lineage>,
}
