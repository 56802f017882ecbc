/* shared.c - see shared.h; and the functions by which slots are handed to a child.
 *
 * A child that is forked has its parent's slots. One that is started by exec is seated in the arena
 * while its arguments are pickled: arena_seat, then arena_give for each object, and arena_settle
 * once it is known whether there is a child. What it unpickles attaches it: arena_attach.
 */
#include "shared.h"

#include <errno.h>
#include <fcntl.h>
#include <structmember.h>

#define IDENTITY_SIZE ((Py_ssize_t)sizeof(mpx_arena_id_t))

/* ---- An object's slot ------------------------------------------------------------------------ */

struct mpx_former {
    mpx_arena_t *arena;
    mpx_slot_t slot;
    mpx_former_t *next;
};

int mpx_place_new(mpx_place_t *place, bool is_lock)
{
    int (*new_slot)(mpx_arena_t * arena, mpx_slot_t * slot) =
        is_lock ? mpx_slot_new_lock : mpx_slot_new;
    mpx_arena_t *arena;
    mpx_slot_t slot = 0;
    int status = mpx_arena_home(&arena);
    if (status == 0)
        status = new_slot(arena, &slot);
    if (status == -EBADF || status == -ESTALE) {
        /* The program has closed the descriptor of the arena, which therefore cannot grow. */
        status = mpx_arena_move(&arena);
        if (status == 0)
            status = new_slot(arena, &slot);
    }
    if (status < 0) {
        mpx_raise(status);
        return -1;
    }
    *place = (mpx_place_t){arena, slot, mpx_slot_at(arena, slot)};
    return 0;
}

/* In the object's critical section. */
static void put_place(SharedObject *self, mpx_place_t place)
{
    self->arena = place.arena;
    self->slot = place.slot;
    mpx_ptr_store_release(&self->room, place.room); /* P0: with P1 */
}

static int hold_another(SharedObject *self, mpx_place_t place)
{
    mpx_former_t *former = PyMem_Malloc(sizeof(*former));
    if (former == NULL) {
        mpx_slot_drop(place.arena, place.slot);
        PyErr_NoMemory();
        return -1;
    }
    Py_BEGIN_CRITICAL_SECTION(self);
    *former = (mpx_former_t){self->arena, self->slot, self->former};
    self->former = former;
    put_place(self, place);
    Py_END_CRITICAL_SECTION();
    return 0;
}

int mpx_shared_hold(SharedObject *self, mpx_place_t place)
{
    bool is_first;
    Py_BEGIN_CRITICAL_SECTION(self);
    is_first = self->slot == 0;
    if (is_first)
        put_place(self, place);
    Py_END_CRITICAL_SECTION();
    return is_first ? 0 : hold_another(self, place);
}

int mpx_shared_make(SharedObject *self)
{
    mpx_place_t place;
    return mpx_place_new(&place, false) < 0 ? -1 : mpx_shared_hold(self, place);
}

void mpx_shared_drop(SharedObject *self)
{
    while (self->former != NULL) {
        mpx_former_t *former = self->former;
        self->former = former->next;
        mpx_slot_drop(former->arena, former->slot);
        PyMem_Free(former);
    }
    if (self->slot != 0)
        mpx_slot_drop(self->arena, self->slot);
}

mpx_place_t mpx_shared_place(SharedObject *self)
{
    mpx_place_t place;
    Py_BEGIN_CRITICAL_SECTION(self);
    place = (mpx_place_t){self->arena, self->slot, mpx_shared_room(self)};
    Py_END_CRITICAL_SECTION();
    return place;
}

void mpx_shared_raise_not_made(SharedObject *self, const char *attribute)
{
    PyErr_Format(PyExc_AttributeError, "'%s' object has no attribute '%s'", Py_TYPE(self)->tp_name,
                 attribute);
}

/* ---- Handing over ---------------------------------------------------------------------------- */

static mpx_arena_t *arena_of(PyObject *identity)
{
    mpx_arena_id_t id;
    if (!PyBytes_Check(identity) || PyBytes_GET_SIZE(identity) != IDENTITY_SIZE) {
        PyErr_SetString(PyExc_ValueError, "that is not the identity of an arena");
        return NULL;
    }
    memcpy(&id, PyBytes_AS_STRING(identity), sizeof(id));
    mpx_arena_t *arena = mpx_arena_find(id);
    if (arena == NULL)
        PyErr_SetString(PyExc_LookupError, "this process has not attached to that arena");
    return arena;
}

int mpx_place_take(mpx_place_t *place, PyObject *identity, mpx_slot_t slot)
{
    mpx_arena_t *arena = arena_of(identity);
    if (arena == NULL)
        return -1;
    int status = mpx_slot_take(arena, slot);
    if (status == -EPROTO) {
        PyErr_Format(PyExc_FileNotFoundError,
                     "this process was not given shared object %u, or has dropped it since", slot);
        return -1;
    }
    if (status < 0) {
        mpx_raise(status);
        return -1;
    }
    *place = (mpx_place_t){arena, slot, mpx_slot_at(arena, slot)};
    return 0;
}

PyDoc_STRVAR(arena_seat_doc,
             "arena_seat(identity, /)\n--\n\n"
             "Make a member record for a child that is about to be started; its number.");

static PyObject *arena_seat(PyObject *Py_UNUSED(module), PyObject *identity)
{
    uint32_t seat;
    mpx_arena_t *arena = arena_of(identity);
    if (arena == NULL)
        return NULL;
    int status = mpx_arena_seat(arena, &seat);
    return status < 0 ? mpx_raise(status) : PyLong_FromUnsignedLong(seat);
}

PyDoc_STRVAR(arena_give_doc, "arena_give(identity, seat, slot, /)\n--\n\n"
                             "Let the child with that record hold the slot.");

static PyObject *arena_give(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *identity;
    unsigned int seat, slot;
    if (!PyArg_ParseTuple(args, "SII:arena_give", &identity, &seat, &slot))
        return NULL;
    mpx_arena_t *arena = arena_of(identity);
    if (arena == NULL)
        return NULL;
    int status = mpx_arena_give(arena, seat, slot);
    if (status < 0)
        return mpx_raise(status);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(arena_settle_doc,
             "arena_settle(identity, seat, pid, /)\n--\n\n"
             "Say that the child with that record was started as pid, or, with 0, was not.");

static PyObject *arena_settle(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *identity;
    unsigned int seat;
    int pid;
    if (!PyArg_ParseTuple(args, "SIi:arena_settle", &identity, &seat, &pid))
        return NULL;
    mpx_arena_t *arena = arena_of(identity);
    if (arena == NULL)
        return NULL;
    mpx_arena_settle(arena, seat, pid);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(arena_known_doc, "arena_known(identity, /)\n--\n\n"
                              "Whether this process has attached to that arena.");

static PyObject *arena_known(PyObject *Py_UNUSED(module), PyObject *identity)
{
    if (arena_of(identity) != NULL)
        Py_RETURN_TRUE;
    if (!PyErr_ExceptionMatches(PyExc_LookupError))
        return NULL;
    PyErr_Clear();
    Py_RETURN_FALSE;
}

PyDoc_STRVAR(arena_attach_doc, "arena_attach(fd, seat, /)\n--\n\n"
                               "Attach to an arena with the record that the parent has made.  The\n"
                               "descriptor is the arena's from then on.");

static PyObject *arena_attach(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd;
    unsigned int seat;
    mpx_arena_t *arena;
    if (!PyArg_ParseTuple(args, "iI:arena_attach", &fd, &seat))
        return NULL;
    int status = mpx_arena_attach(&arena, fd, seat);
    if (status == -EPROTO)
        return mpx_raise_message(
            status, "the parent's shared memory is not to be had: its locks cannot be used", NULL);
    if (status < 0)
        return mpx_raise(status);
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC); /* it came through an exec */
    Py_RETURN_NONE;
}

PyDoc_STRVAR(arena_join_doc, "arena_join(identity, seat, /)\n--\n\n"
                             "Take over what the parent's record for this process holds, where it\n"
                             "has attached to the arena already.  Once for a record.");

static PyObject *arena_join(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *identity;
    unsigned int seat;
    if (!PyArg_ParseTuple(args, "SI:arena_join", &identity, &seat))
        return NULL;
    mpx_arena_t *arena = arena_of(identity);
    if (arena == NULL)
        return NULL;
    int status = mpx_arena_join(arena, seat);
    if (status < 0)
        return mpx_raise(status);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(arena_of_doc,
             "arena_of(object, /)\n--\n\n"
             "Where a shared object is: (identity of the arena, its descriptor, slot).");

static PyObject *arena_of_object(PyObject *module, PyObject *object)
{
    if (!PyObject_TypeCheck(object, module_state(module)->shared_type)) {
        PyErr_Format(PyExc_TypeError, "%R is no shared object", object);
        return NULL;
    }
    if (!mpx_shared_check((SharedObject *)object, "_semlock"))
        return NULL;
    mpx_place_t place = mpx_shared_place((SharedObject *)object);
    mpx_arena_id_t id = mpx_arena_id(place.arena);
    int fd = mpx_arena_fd(place.arena);
    if (fd < 0)
        return mpx_raise_message(fd,
                                 "the program has closed the descriptor of mproc_ext's shared "
                                 "memory: what is in it cannot be given to a new process",
                                 NULL);
    return Py_BuildValue("y#iI", (const char *)&id, IDENTITY_SIZE, fd, place.slot);
}

/* ---- Methods of the very class --------------------------------------------------------------- */

/* Whether what the class has by the method's name is the method as one of its bases in C has it. */
static int is_inherited(PyObject *cls, const PyMethodDef *method)
{
    PyObject *found = PyObject_GetAttrString(cls, method->ml_name);
    if (found == NULL)
        return -1;
    int is = Py_IS_TYPE(found, &PyMethodDescr_Type) &&
             ((PyMethodDescrObject *)found)->d_method == method;
    Py_DECREF(found);
    return is;
}

static int own_method(PyObject *cls, PyMethodDef *method)
{
    int inherited = is_inherited(cls, method);
    if (inherited <= 0)
        return inherited;
    PyObject *own = PyDescr_NewMethod((PyTypeObject *)cls, method);
    int status = own == NULL ? -1 : PyObject_SetAttrString(cls, method->ml_name, own);
    Py_XDECREF(own);
    return status;
}

static bool is_private(const char *name)
{
    return name[0] == '_' && name[1] != '_';
}

static int own_methods_of(PyObject *cls, PyTypeObject *base)
{
    int status = 0;
    for (PyMethodDef *method = base->tp_methods;
         status == 0 && method != NULL && method->ml_name != NULL; method++) {
        if (!is_private(method->ml_name))
            status = own_method(cls, method);
    }
    return status;
}

static bool is_ours(PyObject *module, PyTypeObject *cls)
{
    return PyType_IsSubtype(cls, module_state(module)->shared_type) ||
           PyType_IsSubtype(cls, module_state(module)->queue_base_type) ||
           PyType_IsSubtype(cls, module_state(module)->connection_type);
}

PyDoc_STRVAR(own_methods_doc,
             "own_methods(cls, /)\n--\n\n"
             "Give a class the methods that it inherits from its bases in C as its own.\n\n"
             "They are the same functions; but the interpreter calls a method in C in its fast way "
             "only where the\nobject is of exactly the class that has it.  A decorator: returns "
             "the class.");

static PyObject *own_methods(PyObject *module, PyObject *cls)
{
    if (!PyType_Check(cls) || !is_ours(module, (PyTypeObject *)cls)) {
        PyErr_Format(PyExc_TypeError, "%R is no class of ours", cls);
        return NULL;
    }
    PyObject *bases = PyObject_GetAttrString(cls, "__mro__");
    int status = bases == NULL ? -1 : 0;
    for (Py_ssize_t i = 0; status == 0 && i < PyTuple_GET_SIZE(bases); i++) {
        PyTypeObject *base = (PyTypeObject *)PyTuple_GET_ITEM(bases, i);
        if (is_ours(module, base))
            status = own_methods_of(cls, base);
    }
    Py_XDECREF(bases);
    return status < 0 ? NULL : Py_NewRef(cls);
}

static PyMethodDef shared_methods[] = {
    {"own_methods", own_methods, METH_O, own_methods_doc},
    {"arena_seat", arena_seat, METH_O, arena_seat_doc},
    {"arena_give", arena_give, METH_VARARGS, arena_give_doc},
    {"arena_settle", arena_settle, METH_VARARGS, arena_settle_doc},
    {"arena_known", arena_known, METH_O, arena_known_doc},
    {"arena_attach", arena_attach, METH_VARARGS, arena_attach_doc},
    {"arena_join", arena_join, METH_VARARGS, arena_join_doc},
    {"arena_of", arena_of_object, METH_O, arena_of_doc},
    {NULL, NULL, 0, NULL},
};

/* ---- The base type --------------------------------------------------------------------------- */

static void shared_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    mpx_shared_drop((SharedObject *)self);
    type->tp_free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(shared_take_doc, "_take($self, identity, slot, /)\n--\n\n"
                              "Become the object in a slot that the parent has handed over.");

static PyObject *shared_take(PyObject *self, PyObject *args)
{
    PyObject *identity;
    unsigned int slot;
    mpx_place_t place;
    if (!PyArg_ParseTuple(args, "SI:_take", &identity, &slot) ||
        mpx_place_take(&place, identity, slot) < 0 ||
        mpx_shared_hold((SharedObject *)self, place) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef shared_type_methods[] = {
    {"_take", shared_take, METH_VARARGS, shared_take_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef shared_members[] = {
    {"_is_fork_ctx", T_BOOL, offsetof(SharedObject, is_fork_ctx), 0,
     "made by a fork context: not for processes of other start methods"},
    {NULL, 0, 0, 0},
};

static PyType_Slot shared_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Base of what lies in a slot of shared memory.")},
    {Py_tp_dealloc, shared_dealloc},
    {Py_tp_methods, shared_type_methods},
    {Py_tp_members, shared_members},
    {0, NULL},
};

static PyType_Spec shared_spec = {
    .name = "mproc_ext._core.Shared",
    .basicsize = sizeof(SharedObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = shared_slots,
};

int mpx_add_type(PyObject *module, PyType_Spec *spec, PyObject *base)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, base);
    if (type == NULL)
        return -1;
    int status = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return status;
}

int mpx_add_shared_type(PyObject *module, PyType_Spec *spec)
{
    return mpx_add_type(module, spec, (PyObject *)module_state(module)->shared_type);
}

int mpx_shared_is_fork(module_state_t *state, PyObject *ctx)
{
    PyObject *method = PyObject_CallMethodNoArgs(ctx, state->names[MPX_NAME_GET_START_METHOD]);
    if (method == NULL)
        return -1;
    int is_fork = PyUnicode_Check(method) && PyUnicode_CompareWithASCIIString(method, "fork") == 0;
    Py_DECREF(method);
    return is_fork;
}

int mpx_add_shared(PyObject *module)
{
    module_state_t *state = module_state(module);
    state->shared_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &shared_spec, NULL);
    if (state->shared_type == NULL || PyModule_AddType(module, state->shared_type) < 0)
        return -1;
    return PyModule_AddFunctions(module, shared_methods);
}
