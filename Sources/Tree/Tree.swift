// The plain files of a mirror.
//
//   PlainTree       the directory on this node: opening by file number, reading, applying records, sync
//   FileTable       file number -> handle, on disk; a cache of the numbers that the files themselves carry
//   DescriptorCache a bounded number of open files
//   Applier         applies committed records on worker threads, in order where they touch the same file
//   ReplayPlan      what the records since the checkpoint amount to (pure), for the replay after a crash
//
// docs/plain-files.md tells the whole story.
