/* Keeping CPython's thread state alive for as long as nbdkit's thread lives.
 *
 * nbdkit's Python plugin makes a thread state before every callback and destroys it after; CPython 3.11
 * maps and unmaps a data stack for each.  One unmatched PyGILState_Ensure per thread keeps it; the
 * destructor of a pthread key balances it when the thread ends.  By then the C library may have cleared
 * Python's own key, so the state is remembered here and taken up by hand.
 */
#ifndef SWAPTIDE_THREADS_H
#define SWAPTIDE_THREADS_H

#include <Python.h>
#include <pthread.h>
#include <unistd.h>

static pthread_key_t kept_key;
static int kept_ready;
static int kept_closing;
static long kept_releasing;
static __thread int kept_here;

static void kept_release(void *state)
{
    /* Counted before looking: kept_close sets its flag before it waits for the count.  Whoever comes later
     * leaves the state to the end of the process; taking the GIL of an interpreter that ends would abort. */
    __atomic_fetch_add(&kept_releasing, 1, __ATOMIC_SEQ_CST);
    if (!__atomic_load_n(&kept_closing, __ATOMIC_SEQ_CST)) {
        PyEval_RestoreThread((PyThreadState *)state);
        PyThreadState_Clear((PyThreadState *)state);
        PyThreadState_DeleteCurrent();
    }
    __atomic_fetch_sub(&kept_releasing, 1, __ATOMIC_SEQ_CST);
}

static int kept_setup(void)
{
    if (!kept_ready && pthread_key_create(&kept_key, kept_release) != 0)
        return -1;
    kept_ready = 1;
    return 0;
}

/* Call with the GIL held, from inside a callback. */
static inline void kept_keep(void)
{
    if (kept_here || !kept_ready)
        return;
    kept_here = 1;
    (void)PyGILState_Ensure();
    pthread_setspecific(kept_key, PyThreadState_Get());
}


/* Call without the GIL, which threads that end right now may need. */
static inline void kept_close(void)
{
    __atomic_store_n(&kept_closing, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&kept_releasing, __ATOMIC_SEQ_CST) != 0)
        usleep(100);
}

#endif
