struct ImageSession {}
