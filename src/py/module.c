/* module.c - the extension module mproc_ext._core: its state, its parts, its start.
 *
 * Multi-phase initialisation, heap types, no mutable globals. It needs no GIL (Py_mod_gil): each
 * file says what guards what its threads share. That is what counts in the core, which knows no
 * GIL; atomic words, named in src/DESIGN.md with the pairs they form; and critical sections.
 * tests/sync runs without a GIL, see tests/sync/test_free_threaded.py.
 */
#include "module.h"

#include <stdlib.h>

#include "mpx_os.h"

PyDoc_STRVAR(
    features_doc,
    "features()\n--\n\n"
    "What of the newer kernel facilities is in use: a dict from name to bool.\n\n"
    "MPROC_EXT_WITHOUT in the environment, a comma list of such names, switches them off.");

static PyObject *features(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    PyObject *result = PyDict_New();
    for (int f = 0; result != NULL && f < MPX_FEATURE_COUNT; f++) {
        PyObject *has = mpx_os_has((enum mpx_feature)f) ? Py_True : Py_False;
        if (PyDict_SetItemString(result, mpx_os_feature_name((enum mpx_feature)f), has) < 0)
            Py_CLEAR(result);
    }
    return result;
}

static PyMethodDef module_methods[] = {
    {"features", features, METH_NOARGS, features_doc},
    {NULL, NULL, 0, NULL},
};

static int apply_switches(void)
{
    const char *without = getenv("MPROC_EXT_WITHOUT");
    if (mpx_os_without(without) == 0)
        return 0;
    PyErr_Format(PyExc_ImportError,
                 "MPROC_EXT_WITHOUT=%s names a feature that does not exist; see "
                 "mproc_ext._core.features()",
                 without);
    return -1;
}

static int intern_names(module_state_t *state)
{
    static const char *const names[MPX_NAMES] = {
        [MPX_NAME_ACQUIRE] = "acquire",
        [MPX_NAME_CLEAR_MEMO] = "clear_memo",
        [MPX_NAME_COUNT] = "_count",
        [MPX_NAME_CTX] = "ctx",
        [MPX_NAME_DISPATCH_TABLE] = "dispatch_table",
        [MPX_NAME_DUMP] = "dump",
        [MPX_NAME_DUMPS] = "dumps",
        [MPX_NAME_ENTER] = "__enter__",
        [MPX_NAME_EXIT] = "__exit__",
        [MPX_NAME_FILENO] = "fileno",
        [MPX_NAME_FORKING_PICKLER] = "_ForkingPickler",
        [MPX_NAME_GET] = "get",
        [MPX_NAME_GET_START_METHOD] = "get_start_method",
        [MPX_NAME_IS_MINE] = "_is_mine",
        [MPX_NAME_LOAD] = "load",
        [MPX_NAME_LOADS] = "loads",
        [MPX_NAME_LOCK] = "_lock",
        [MPX_NAME_MAKE_METHODS] = "_make_methods",
        [MPX_NAME_NOTIFY] = "notify",
        [MPX_NAME_PUT] = "put",
        [MPX_NAME_PICKLER] = "Pickler",
        [MPX_NAME_RELEASE] = "release",
        [MPX_NAME_ROUNDED_UP] = "_rounded_up",
        [MPX_NAME_SEMLOCK] = "_semlock",
        [MPX_NAME_SEND] = "send",
        [MPX_NAME_UNPICKLER] = "Unpickler",
    };
    for (int i = 0; i < MPX_NAMES; i++) {
        state->names[i] = PyUnicode_InternFromString(names[i]);
        if (state->names[i] == NULL)
            return -1;
    }
    return 0;
}

/* Whether the interpreter runs `assert`. */
static int see_asserts(module_state_t *state)
{
    PyObject *flags = PySys_GetObject("flags"); /* borrowed */
    PyObject *level = flags == NULL ? NULL : PyObject_GetAttrString(flags, "optimize");
    long number = level == NULL ? -1 : PyLong_AsLong(level);
    Py_XDECREF(level);
    state->asserts = number == 0;
    return number < 0 ? -1 : 0;
}

static int module_exec(PyObject *module)
{
    module_state(module)->module = module;
    if (apply_switches() < 0 || intern_names(module_state(module)) < 0 ||
        see_asserts(module_state(module)) < 0 || mpx_add_child(module) < 0 ||
        mpx_add_program(module) < 0 || mpx_add_fds(module) < 0 || mpx_add_shared(module) < 0 ||
        mpx_add_semlock(module) < 0 || mpx_add_event(module) < 0 || mpx_add_condition(module) < 0 ||
        mpx_add_block(module) < 0 || mpx_add_synchronized(module) < 0 ||
        mpx_add_pickling(module) < 0 || mpx_add_unpickling(module) < 0 ||
        mpx_add_scratch(module) < 0 || mpx_add_serialize(module) < 0 || mpx_add_lease(module) < 0 ||
        mpx_add_fork_copy(module) < 0 || mpx_add_own_fd(module) < 0 ||
        mpx_add_channel(module) < 0 || mpx_add_queue_base(module) < 0 ||
        mpx_add_queue(module) < 0 || mpx_add_simple_queue(module) < 0 ||
        mpx_add_connection(module) < 0 || mpx_add_connection_wait(module) < 0 ||
        mpx_add_job(module) < 0 || mpx_add_crew(module) < 0 || mpx_add_worker(module) < 0)
        return -1;
#ifdef MPX_KILL_POINTS
    if (mpx_add_kill_points(module) < 0)
        return -1;
#endif
    return PyModule_AddStringConstant(module, "__version__", MPX_VERSION);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    Py_VISIT(module_state(module)->child_type);
    Py_VISIT(module_state(module)->shared_type);
    Py_VISIT(module_state(module)->view_type);
    Py_VISIT(module_state(module)->synchronized_type);
    Py_VISIT(module_state(module)->semlock_type);
    Py_VISIT(module_state(module)->semlock_view);
    Py_VISIT(module_state(module)->first_lock_hook);
    Py_VISIT(module_state(module)->slow_inits);
    Py_VISIT(module_state(module)->channel_type);
    Py_VISIT(module_state(module)->queue_base_type);
    Py_VISIT(module_state(module)->queue_type);
    Py_VISIT(module_state(module)->simple_queue_type);
    Py_VISIT(module_state(module)->connection_type);
    Py_VISIT(module_state(module)->connections);
    Py_VISIT(module_state(module)->connection_kind_of);
    Py_VISIT(module_state(module)->empty_error);
    Py_VISIT(module_state(module)->full_error);
    Py_VISIT(module_state(module)->shut_down_error);
    Py_VISIT(module_state(module)->pickling_type);
    Py_VISIT(module_state(module)->lease_type);
    Py_VISIT(module_state(module)->reading_type);
    Py_VISIT(module_state(module)->scratch_type);
    Py_VISIT(module_state(module)->job_type);
    Py_VISIT(module_state(module)->crew_type);
    Py_VISIT(module_state(module)->turn_type);
    Py_VISIT(module_state(module)->pool_timeout_error);
    Py_VISIT(module_state(module)->pool_failure);
    Py_VISIT(module_state(module)->pool_unsendable);
    Py_VISIT(module_state(module)->pool_apply);
    Py_VISIT(module_state(module)->pickler_class);
    Py_VISIT(module_state(module)->pickler_tables);
    Py_VISIT(module_state(module)->pickle_loads);
    Py_VISIT(module_state(module)->pickle_pickler);
    Py_VISIT(module_state(module)->pickle_unpickler);
    Py_VISIT(module_state(module)->find_tables);
    Py_VISIT(module_state(module)->pickling_namespace);
    for (int i = 0; i < 2 * MPX_PICKLINGS; i++)
        Py_VISIT((PyObject *)module_state(module)->picklings[i % 2][i / 2]);
    return 0;
}

static int module_clear(PyObject *module)
{
    for (int i = 0; i < MPX_NAMES; i++)
        Py_CLEAR(module_state(module)->names[i]);
    Py_CLEAR(module_state(module)->child_type);
    Py_CLEAR(module_state(module)->shared_type);
    Py_CLEAR(module_state(module)->view_type);
    Py_CLEAR(module_state(module)->synchronized_type);
    Py_CLEAR(module_state(module)->semlock_type);
    Py_CLEAR(module_state(module)->semlock_view);
    Py_CLEAR(module_state(module)->first_lock_hook);
    Py_CLEAR(module_state(module)->slow_inits);
    Py_CLEAR(module_state(module)->channel_type);
    Py_CLEAR(module_state(module)->queue_base_type);
    Py_CLEAR(module_state(module)->queue_type);
    Py_CLEAR(module_state(module)->simple_queue_type);
    Py_CLEAR(module_state(module)->connection_type);
    Py_CLEAR(module_state(module)->connections);
    Py_CLEAR(module_state(module)->connection_kind_of);
    Py_CLEAR(module_state(module)->empty_error);
    Py_CLEAR(module_state(module)->full_error);
    Py_CLEAR(module_state(module)->shut_down_error);
    Py_CLEAR(module_state(module)->pickling_type);
    Py_CLEAR(module_state(module)->lease_type);
    Py_CLEAR(module_state(module)->reading_type);
    Py_CLEAR(module_state(module)->scratch_type);
    Py_CLEAR(module_state(module)->job_type);
    Py_CLEAR(module_state(module)->crew_type);
    Py_CLEAR(module_state(module)->turn_type);
    Py_CLEAR(module_state(module)->pool_timeout_error);
    Py_CLEAR(module_state(module)->pool_failure);
    Py_CLEAR(module_state(module)->pool_unsendable);
    Py_CLEAR(module_state(module)->pool_apply);
    Py_CLEAR(module_state(module)->pickler_class);
    Py_CLEAR(module_state(module)->pickler_tables);
    Py_CLEAR(module_state(module)->pickle_loads);
    Py_CLEAR(module_state(module)->pickle_pickler);
    Py_CLEAR(module_state(module)->pickle_unpickler);
    Py_CLEAR(module_state(module)->find_tables);
    Py_CLEAR(module_state(module)->pickling_namespace);
    for (int i = 0; i < 2 * MPX_PICKLINGS; i++)
        Py_XDECREF((PyObject *)mpx_swap(&module_state(module)->picklings[i % 2][i / 2], NULL));
    for (int i = 0; i < MPX_KEYS; i++)
        Py_CLEAR(module_state(module)->keys.strings[i]);
    return 0;
}

static void module_free(void *module)
{
    module_clear(module);
    PyMem_RawFree(module_state(module)->buffer);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

struct PyModuleDef mpx_core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "mproc_ext._core",
    .m_doc = PyDoc_STR("The C core of mproc_ext; use it through the package."),
    .m_size = sizeof(module_state_t),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&mpx_core_module);
}
