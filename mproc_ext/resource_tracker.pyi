from multiprocessing.resource_tracker import (
    ResourceTracker as ResourceTracker,
    _resource_tracker as _resource_tracker,
    ensure_running as ensure_running,
    getfd as getfd,
    main as main,
    register as register,
    unregister as unregister,
)

__all__ = ["ensure_running", "register", "unregister"]
