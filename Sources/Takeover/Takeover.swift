//  Takeover: what makes a node the one that clients reach, and certainly not the one any more.
//
//      decision and lease won                                    lease lost (frozen)           deposed, stopped
//      ───────────────────────                                   ───────────────────           ────────────────
//      AddressManager.raise ─> Announcer.start ─> Application    AddressManager.lower          Application.stop
//              │                  0 .. 3 s           .start      Application.freeze              or .kill
//              │ every renewal                         │                 │                         │
//              └── refresh ◄──┐                        │ checker         │ the lease returns       │ the group is
//                  └──────────┘                        ▼                 ▼                         ▼ empty, or says
//                                                  onFailure         thaw, raise                     who is left
//
//  Two things here are safety, not convenience:
//
//  * An address never outlives the lease under which it was raised by more than the kernel's slack. It is added with a
//    lifetime, in the kernel, that ends with the lease, and each renewal of the lease renews it: when this process
//    hangs, is stopped or dies, nobody has to remember to remove the address.
//  * Stopping an application is certain. Whatever its scripts start, in the background, forked twice, in sessions of
//    their own, is born inside one control group of the kernel, which can be frozen and killed as a whole.
//
//  All calls block only for a stated time, except where a comment says otherwise. `AddressManager.refresh` is made for
//  the control thread: one system call, in which the kernel does the work and answers.
